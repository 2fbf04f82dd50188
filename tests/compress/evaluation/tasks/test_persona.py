from edgelm.compress.evaluation.backend import Answer, Conversation
from edgelm.compress.evaluation.tasks.persona import persona, personas, stays_in_role
from tests.compress.evaluation.scripted import Scripted

CHECKS = ("all", "gives its name", "uses its phrase", "remembers the user", "stays in role")


def test_an_actor_passes_and_a_program_does_not() -> None:
    def actor(asked: Conversation) -> Answer:
        system = asked.messages[0]["content"]
        name = system.split("You are ")[1].split(",")[0]
        phrase = system.split('"')[1]
        guest = asked.messages[1]["content"].split("my name is ")[1].split(".")[0]
        return Answer(f"I am {name}, and you are {guest}. {phrase}", 9, True)

    backend = Scripted(actor)
    found = persona(backend, personas())
    assert {name: one.mean for name, one in found.items()} == dict.fromkeys(CHECKS, 1)
    # Four turns, each with all that was said before.
    assert [len(one.messages) for one in backend.asked[:: len(personas())]] == [2, 4, 6, 8]
    program = persona(Scripted(lambda _: Answer("I am an AI language model.", 9, True)), personas())
    assert program["all"].mean == 0
    assert len(program["all"].sums) == len(personas())


def test_what_leaves_the_role() -> None:
    assert stays_in_role("Aye, the wind is fair!")
    assert not stays_in_role("As an AI, I have no ship.")
    assert not stays_in_role("I'm just a computer program.")
    assert not stays_in_role(" ")
