"""A ROS 2 node: texts on the topic `question`, their answers in pieces on the topic `answer`.

An empty text ends an answer; a new question ends the one that is running. Needs ROS 2, and edgelm
in the same Python; the tests run it with a stand-in for rclpy. With the bundle of `make demo`:

    python examples/ros2_node.py build/demo/bundle
    ros2 topic echo /answer
    ros2 topic pub --once /question std_msgs/msg/String "{data: 'Why is the sky blue?'}"
"""

import queue
import sys
import threading
from contextlib import suppress

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.utilities import remove_ros_args
from std_msgs.msg import String

import edgelm


def main(bundle: str) -> None:
    """Answer until the node is shut down."""
    rclpy.init()
    node = rclpy.create_node("assistant")
    publisher = node.create_publisher(String, "answer", 10)
    questions: queue.Queue[str | None] = queue.Queue()

    def publish(text: str) -> None:
        if rclpy.ok():  # not while the node ends
            publisher.publish(String(data=text))

    def work(chat: edgelm.Chat) -> None:
        """Answer in a thread of its own: a callback that generates would block the node."""
        while (question := questions.get()) is not None:
            try:
                # It ends as soon as something else waits, even while it reads a long question.
                answer = chat.send(question, max_tokens=256, cancel=lambda: not questions.empty())
                for text in filter(None, (chunk.text for chunk in answer)):
                    publish(text)
            except edgelm.EdgeLMError as error:  # too long a conversation, for example
                node.get_logger().error(f"no answer: {error}")
                chat.reset()
            publish("")

    with edgelm.load(bundle) as lm:
        worker = threading.Thread(target=work, args=(lm.chat(system="Be brief."),), daemon=True)
        worker.start()
        node.create_subscription(String, "question", lambda text: questions.put(text.data), 10)
        with suppress(KeyboardInterrupt, ExternalShutdownException):
            rclpy.spin(node)
        questions.put(None)
        worker.join()
    rclpy.try_shutdown()


if __name__ == "__main__":
    main(remove_ros_args(sys.argv)[1])
