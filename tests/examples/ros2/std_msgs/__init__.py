"""A stand-in for the messages of ROS 2."""
