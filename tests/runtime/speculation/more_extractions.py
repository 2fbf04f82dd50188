"""Extractions that the rules of the prediction were not written with."""

import json

from edgelm.bench.speculation.task import Task


def _task(prompt: str, answer: object, indent: int | None = None) -> Task:
    return Task(prompt, json.dumps(answer, ensure_ascii=False, indent=indent))


MORE_EXTRACTIONS = (
    _task(
        "Turn the recipe into JSON with title, servings and ingredients (name, amount, unit).\n\n"
        "Lentil soup for 4 people. You need 250 g of red lentils, 2 onions, 1 l of vegetable "
        "stock, 3 tbsp of olive oil and 400 g of tomatoes.",
        {
            "title": "Lentil soup",
            "servings": 4,
            "ingredients": [
                {"name": "red lentils", "amount": 250, "unit": "g"},
                {"name": "onions", "amount": 2, "unit": None},
                {"name": "vegetable stock", "amount": 1, "unit": "l"},
                {"name": "olive oil", "amount": 3, "unit": "tbsp"},
                {"name": "tomatoes", "amount": 400, "unit": "g"},
            ],
        },
    ),
    _task(
        "Fill in this form from the mail and answer with JSON only.\n"
        '{"sender": "", "subject": "", "device": "", "serial": "", "problem": "", "urgent": false}'
        "\n\nFrom: Petra Lang\nSubject: Dryer broken again\n\nHello, our tumble dryer TX-400 "
        "(serial number 77-1203-B) stops after ten minutes and shows error E14. Please send "
        "somebody this week, we have no other one. Thanks, Petra",
        {
            "sender": "Petra Lang",
            "subject": "Dryer broken again",
            "device": "tumble dryer TX-400",
            "serial": "77-1203-B",
            "problem": "stops after ten minutes and shows error E14",
            "urgent": True,
        },
    ),
    _task(
        "List the matches with home, away, goals_home, goals_away and scorers as JSON, sorted by "
        "the name of the home team.\n\nRovers beat Albion 3-1 on Saturday with goals of Price, "
        "Okoye and Marsh; Dean scored for Albion. City and United drew 2-2: Lund and Vega scored "
        "for City, Moss twice for United. Athletic lost 0-1 to Wanderers after a penalty of Hale.",
        [
            {
                "home": "Athletic",
                "away": "Wanderers",
                "goals_home": 0,
                "goals_away": 1,
                "scorers": ["Hale"],
            },
            {
                "home": "City",
                "away": "United",
                "goals_home": 2,
                "goals_away": 2,
                "scorers": ["Lund", "Vega", "Moss", "Moss"],
            },
            {
                "home": "Rovers",
                "away": "Albion",
                "goals_home": 3,
                "goals_away": 1,
                "scorers": ["Price", "Okoye", "Marsh", "Dean"],
            },
        ],
        2,
    ),
    _task(
        "Extraia nome, cargo e telefone como JSON.\n\nA diretora Júlia Peçanha atende no 21 "
        "5550-1180. O gerente João Simões atende no 21 5550-1192, a secretária Conceição Araújo no "
        "21 5550-1101 e o técnico Davi Nunes no 21 5550-1177.",
        [
            {"nome": "Júlia Peçanha", "cargo": "diretora", "telefone": "21 5550-1180"},
            {"nome": "João Simões", "cargo": "gerente", "telefone": "21 5550-1192"},
            {"nome": "Conceição Araújo", "cargo": "secretária", "telefone": "21 5550-1101"},
            {"nome": "Davi Nunes", "cargo": "técnico", "telefone": "21 5550-1177"},
        ],
    ),
    _task(
        "Give id, price and stock of each product as JSON.\n\n"
        "| id | product | price | stock |\n|---|---|---|---|\n"
        "| A-17 | desk lamp | 24.90 | 12 |\n| A-18 | floor lamp | 79.00 | 3 |\n"
        "| B-02 | office chair | 149.50 | 0 |\n| B-07 | footrest | 31.20 | 44 |",
        [
            {"id": "A-17", "price": 24.9, "stock": 12},
            {"id": "A-18", "price": 79.0, "stock": 3},
            {"id": "B-02", "price": 149.5, "stock": 0},
            {"id": "B-07", "price": 31.2, "stock": 44},
        ],
    ),
)
