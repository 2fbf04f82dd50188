"""The command line without what is ROS' own."""


def remove_ros_args(arguments: list[str]) -> list[str]:
    return arguments[: arguments.index("--ros-args")] if "--ros-args" in arguments else arguments
