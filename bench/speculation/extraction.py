"""Tasks that extract data from a text as JSON: single records and lists, in several languages.

Values are copied, shortened, reordered or rewritten (dates as ISO 8601) as a good answer would do.
"""

import json

from edgelm.bench.speculation.task import Task

_ORDERS = """\
Order 4711 from Anna Kowalski, Warsaw: 12 ball bearings, delivery by 3 May. Order 4712 from \
Bernard Lefevre, Lyon: 40 meters of copper wire, delivery by 9 May. Order 4713 from Carla Rossi, \
Milan: 3 stepper motors, delivery by 3 May. Order 4714 from David Stone, Boston: 250 spring \
washers, delivery by 21 May."""

_ORDERS_JSON = """\
[{"order": 4711, "customer": "Anna Kowalski", "city": "Warsaw", "goods": "12 ball bearings", \
"delivery": "3 May"}, {"order": 4712, "customer": "Bernard Lefevre", "city": "Lyon", "goods": "40 \
meters of copper wire", "delivery": "9 May"}, {"order": 4713, "customer": "Carla Rossi", "city": \
"Milan", "goods": "3 stepper motors", "delivery": "3 May"}, {"order": 4714, "customer": "David \
Stone", "city": "Boston", "goods": "250 spring washers", "delivery": "21 May"}]"""

_SENSORS = """\
The station at Nordstrand reports 14.2 degrees, 71 percent humidity and wind of 8.4 meters per \
second from the west. The station at Kap Hoorn reports 6.8 degrees, 93 percent humidity and wind \
of 21.0 meters per second from the south. The station at Alice Springs reports 31.5 degrees, 18 \
percent humidity and wind of 3.1 meters per second from the east."""

_SENSORS_JSON = """\
{"stations": [{"name": "Nordstrand", "degrees": 14.2, "humidity_percent": 71, \
"wind_meters_per_second": 8.4, "wind_from": "west"}, {"name": "Kap Hoorn", "degrees": 6.8, \
"humidity_percent": 93, "wind_meters_per_second": 21.0, "wind_from": "south"}, {"name": "Alice \
Springs", "degrees": 31.5, "humidity_percent": 18, "wind_meters_per_second": 3.1, "wind_from": \
"east"}]}"""

_INVOICE = """\
INVOICE

Hansen Marine Supplies, Strandvej 114, 5700 Svendborg
Invoice number: HM-2024-0917
Invoice date: 17 September 2024
Customer: Baltic Charter GmbH
Customer number: 30442
Payment due: 17 October 2024

2 bilge pumps 24 V, 189.50 each
1 anchor chain 10 mm, 40 m, 312.00

Net amount: 691.00
VAT 25 %: 172.75
Total: 863.75 EUR
IBAN: DK50 0040 0440 1162 43"""

_INVOICE_JSON = {
    "invoice_number": "HM-2024-0917",
    "invoice_date": "2024-09-17",
    "supplier": "Hansen Marine Supplies",
    "customer": "Baltic Charter GmbH",
    "customer_number": 30442,
    "payment_due": "2024-10-17",
    "net_amount": 691.0,
    "vat": 172.75,
    "total": 863.75,
    "currency": "EUR",
    "iban": "DK50 0040 0440 1162 43",
}

_FLAT = """\
For rent from the first of June: a bright apartment on the third floor of a house built in 1924, \
Rosenweg 7 in Freiburg, 84 square meters, three rooms, with a balcony to the garden. The rent is \
1,150 euros a month, heating costs of 180 euros come on top, the deposit is 3,450 euros. Cats are \
welcome, dogs by agreement. Please write to Mrs. Helena Brandt, h.brandt@rosenweg7.example, or \
call 0761 555 0199 after six in the evening."""

_FLAT_JSON = {
    "address": "Rosenweg 7",
    "city": "Freiburg",
    "floor": 3,
    "year_built": 1924,
    "square_meters": 84,
    "rooms": 3,
    "balcony": True,
    "rent": 1150,
    "heating_costs": 180,
    "deposit": 3450,
    "pets": "Cats are welcome, dogs by agreement",
    "contact": {
        "name": "Helena Brandt",
        "email": "h.brandt@rosenweg7.example",
        "phone": "0761 555 0199",
    },
}

_QUOTES = """\
The council argued for three hours. "We cannot keep a bridge open that our own engineers would \
not drive across," said Councillor Ruth Adeyemi. The mayor, Tom Fairbanks, disagreed: "A closed \
bridge means forty minutes more for every ambulance." Shopkeeper Lena Marsh, who had asked for the \
hearing, said to them that "nobody has ever shown us the numbers". The engineer Paul Okafor \
promised a report by Friday. "You will have every crack in it, with a photograph," he said."""

_QUOTES_JSON = [
    {
        "speaker": "Ruth Adeyemi",
        "role": "Councillor",
        "quote": "We cannot keep a bridge open that our own engineers would not drive across",
    },
    {
        "speaker": "Tom Fairbanks",
        "role": "mayor",
        "quote": "A closed bridge means forty minutes more for every ambulance.",
    },
    {
        "speaker": "Lena Marsh",
        "role": "Shopkeeper",
        "quote": "nobody has ever shown us the numbers",
    },
    {
        "speaker": "Paul Okafor",
        "role": "engineer",
        "quote": "You will have every crack in it, with a photograph",
    },
]

_GERMAN = """\
Auf dem Hof von Familie Jürgens in Bad Zwischenahn gibt es ab Samstag wieder Äpfel: Der Boskoop \
kostet 2,40 Euro je Kilo und wird im Oktober geerntet, er ist säuerlich und gut zum Backen. Die \
Gräfin Goldach kostet 2,10 Euro je Kilo, wird im September geerntet und ist saftig. Der \
Finkenwerder Herbstprinz kostet 2,90 Euro je Kilo, wird ebenfalls im Oktober geerntet und ist \
würzig und lange haltbar."""

_GERMAN_JSON = {
    "hof": "Familie Jürgens",
    "ort": "Bad Zwischenahn",
    "äpfel": [
        {
            "sorte": "Boskoop",
            "preis": 2.4,
            "ernte": "Oktober",
            "eigenschaften": "säuerlich und gut zum Backen",
        },
        {
            "sorte": "Gräfin Goldach",
            "preis": 2.1,
            "ernte": "September",
            "eigenschaften": "saftig",
        },
        {
            "sorte": "Finkenwerder Herbstprinz",
            "preis": 2.9,
            "ernte": "Oktober",
            "eigenschaften": "würzig und lange haltbar",
        },
    ],
}

_RUSSIAN = """\
Поезд 016А отправляется из Москвы в 00:41 и прибывает в Мурманск через 35 часов. Поезд 026Г \
отправляется из Ижевска в 17:30 и прибывает в Казань через 7 часов. Поезд 068Ы отправляется из \
Абакана в 13:05 и прибывает в Красноярск через 12 часов."""

_RUSSIAN_JSON = [
    {"поезд": "016А", "из": "Москвы", "время": "00:41", "в": "Мурманск", "часов": 35},
    {"поезд": "026Г", "из": "Ижевска", "время": "17:30", "в": "Казань", "часов": 7},
    {"поезд": "068Ы", "из": "Абакана", "время": "13:05", "в": "Красноярск", "часов": 12},
]

_LETTER = """\
Dear Oskar, we reached Trieste on Monday, after two nights in Ljubljana where Irina met her old \
teacher, Professor Novak. Tomorrow Sebastian and I take the early boat to Piran; Irina stays with \
the Cosulich family until Thursday. From Piran we travel to Rovinj by bus, and in Pula we hope to \
see Marta Horvat again. Give our love to Aunt Wilhelmina. Yours, Katharina"""

_LETTER_JSON = {
    "people": [
        "Oskar",
        "Irina",
        "Professor Novak",
        "Sebastian",
        "Marta Horvat",
        "Aunt Wilhelmina",
        "Katharina",
    ],
    "places": ["Trieste", "Ljubljana", "Piran", "Rovinj", "Pula"],
}

_LOG = """\
2026-03-02 04:11:09 ERROR gateway-2 Connection to 10.0.4.17 timed out after 30 s
2026-03-02 04:11:41 WARN gateway-2 Switched to the backup line
2026-03-02 04:15:00 INFO scheduler Nightly backup finished, 14 GB in 212 s
2026-03-02 05:02:33 ERROR sensor-hub Frame 88213 has a wrong checksum"""

_LOG_JSON = [
    {
        "time": "2026-03-02 04:11:09",
        "level": "ERROR",
        "source": "gateway-2",
        "message": "Connection to 10.0.4.17 timed out after 30 s",
    },
    {
        "time": "2026-03-02 04:11:41",
        "level": "WARN",
        "source": "gateway-2",
        "message": "Switched to the backup line",
    },
    {
        "time": "2026-03-02 04:15:00",
        "level": "INFO",
        "source": "scheduler",
        "message": "Nightly backup finished, 14 GB in 212 s",
    },
    {
        "time": "2026-03-02 05:02:33",
        "level": "ERROR",
        "source": "sensor-hub",
        "message": "Frame 88213 has a wrong checksum",
    },
]


def _json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


EXTRACTION: tuple[Task, ...] = (
    Task(
        f"Extract order, customer, city, goods and delivery as a JSON list.\n\n{_ORDERS}",
        _ORDERS_JSON,
    ),
    Task(
        "Extract the stations with name, degrees, humidity_percent, wind_meters_per_second and "
        f"wind_from as JSON.\n\n{_SENSORS}",
        _SENSORS_JSON,
    ),
    Task(
        "Extract invoice_number, invoice_date, supplier, customer, customer_number, payment_due, "
        "net_amount, vat, total, currency and iban as JSON, with dates in ISO 8601.\n\n" + _INVOICE,
        _json(_INVOICE_JSON, 2),
    ),
    Task(
        "Extract the data of this advertisement as JSON: address, city, floor, year_built, "
        "square_meters, rooms, balcony, rent, heating_costs, deposit, pets and contact (name, "
        f"email, phone).\n\n{_FLAT}",
        _json(_FLAT_JSON),
    ),
    Task(
        f"Who said what? Answer with a JSON list of speaker, role and quote.\n\n{_QUOTES}",
        _json(_QUOTES_JSON),
    ),
    Task(
        "Gib die Angaben als JSON wieder: hof, ort und äpfel mit sorte, preis, ernte und "
        f"eigenschaften.\n\n{_GERMAN}",
        _json(_GERMAN_JSON, 2),
    ),
    Task(
        f"Выпиши поезда в формате JSON: поезд, из, время, в, часов.\n\n{_RUSSIAN}",
        _json(_RUSSIAN_JSON),
    ),
    Task(
        f"List the people and the places of this letter as JSON.\n\n{_LETTER}", _json(_LETTER_JSON)
    ),
    Task(
        f"Convert this log to JSON with time, level, source and message.\n\n{_LOG}",
        _json(_LOG_JSON, 1),
    ),
)
