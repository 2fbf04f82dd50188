"""Four kinds of work, each with prompts and the answers that a good model would give.

How much of an answer can be drafted from its prompt is a matter of the work: an edited program is
mostly the program, a chat answer has next to nothing of its question. The reference answers make
that independent of how well a small model does the work.
"""

from edgelm.bench.speculation.extraction import EXTRACTION
from edgelm.bench.speculation.task import Task

_REPORT = """\
The river Lenne rises on the northern slope of the Kahler Asten at 819 meters above sea level. It \
flows for 129 kilometers through the hills of Sauerland before it joins the Ruhr below the castle \
of Hohensyburg. In the nineteenth century more than sixty hammer mills and wire works stood along \
its banks, because the steep valley gave them a reliable fall of water. The railway of 1861 ended \
the isolation of the valley and doubled the output of the wire works within ten years. Most of \
the mills closed after 1920, when electric power made them independent of the river. Today eleven \
small hydroelectric plants use the old weirs and supply about nine thousand households. Fish \
ladders were built at seven of the weirs between 1998 and 2011, and salmon have been counted \
above Altena again since 2014. The flood of July 2021 destroyed two of the ladders; both were \
rebuilt by the spring of 2023 at a cost of 1.4 million euros."""

_REPORT_SUMMARY = """\
The river Lenne flows for 129 kilometers through the hills of Sauerland before it joins the Ruhr \
below the castle of Hohensyburg. In the nineteenth century more than sixty hammer mills and wire \
works stood along its banks. Most of the mills closed after 1920, when electric power made them \
independent of the river. Today eleven small hydroelectric plants use the old weirs and supply \
about nine thousand households. Fish ladders were built at seven of the weirs between 1998 and \
2011, and salmon have been counted above Altena again since 2014."""

_MINUTES = """\
Minutes of the maintenance meeting, 4 March. The pump of line two failed twice in February; the \
supplier replaced the seal on 19 February and the pump has run without leaks since then. Maria \
Oliveira will order a second seal as a spare part by the end of the week. The compressor room is \
too warm: 41 degrees were measured on 27 February with the door closed. Jonas Weber will ask \
three companies for offers for a larger fan and present them at the next meeting. The night shift \
asked for better lighting at the loading ramp. The budget for this year has 12,000 euros left, of \
which the fan may take 7,500 at most. The next meeting is on 1 April at nine o'clock in room \
2.14."""

_MINUTES_SUMMARY = """\
- The pump of line two failed twice in February; the supplier replaced the seal on 19 February.
- Maria Oliveira will order a second seal as a spare part by the end of the week.
- The compressor room is too warm: 41 degrees were measured on 27 February.
- Jonas Weber will ask three companies for offers for a larger fan.
- The budget for this year has 12,000 euros left, of which the fan may take 7,500 at most.
- The next meeting is on 1 April at nine o'clock in room 2.14."""

_BILL = """\
def bill(items, tax_rate, discount=0.0):
    total = 0.0
    for item in items:
        if item.price < 0:
            raise ValueError(f"{item.name} has a negative price")
        total += item.price * item.count
    total -= total * discount
    total += total * tax_rate
    print(f"total of {len(items)} items: {total:.2f}")
    return round(total, 2)"""

_READINGS = """\
class Readings:
    def __init__(self, limit):
        self.limit = limit
        self.values = []

    def add(self, value):
        if len(self.values) == self.limit:
            self.values.pop(0)
        self.values.append(value)

    def mean(self):
        return sum(self.values) / len(self.values)

    def spread(self):
        return max(self.values) - min(self.values)"""

_READINGS_EDITED = """\
class Readings:
    def __init__(self, limit):
        self.limit = limit
        self.values = []

    def add(self, value):
        if len(self.values) == self.limit:
            self.values.pop(0)
        self.values.append(value)

    def mean(self):
        if not self.values:
            return None
        return sum(self.values) / len(self.values)

    def spread(self):
        if not self.values:
            return None
        return max(self.values) - min(self.values)"""

WORKS: dict[str, tuple[Task, ...]] = {
    "chat": (
        Task(
            "Why is the sky blue?",
            "Sunlight contains all colors. On its way through the air it meets molecules that are "
            "much smaller than its wavelength, and these scatter short waves far more than long "
            "ones. Blue light therefore reaches our eyes from every direction, while red light "
            "passes almost straight through. At sunset the path is so long that most of the blue "
            "has been scattered away, which is why the sun itself looks red then.",
        ),
        Task(
            "I have an hour in the evening. How do I begin to learn the guitar?",
            "Split the hour into three parts. Spend the first fifteen minutes on tuning and on "
            "changing slowly between two easy chords such as E minor and G. Then play one simple "
            "song with a friend or a recording, at half speed if necessary. Use whatever is left "
            "for listening and for rhythm exercises with muted strings. Short daily practice "
            "helps more than a long session once a week, and sore fingertips get better soon.",
        ),
    ),
    "summarize": (
        Task(f"Summarize this report in a few of its own sentences.\n\n{_REPORT}", _REPORT_SUMMARY),
        Task(f"List the decisions and facts of these minutes.\n\n{_MINUTES}", _MINUTES_SUMMARY),
    ),
    "edit code": (
        Task(
            "Rename the variable total to amount. Answer with the whole function and nothing "
            f"else.\n\n{_BILL}",
            _BILL.replace("total", "amount"),
        ),
        Task(
            "Let mean and spread return None where there are no values. Answer with the whole "
            f"class and nothing else.\n\n{_READINGS}",
            _READINGS_EDITED,
        ),
    ),
    "extract JSON": EXTRACTION,
}
