"""Sixty made-up outputs with references, the same ones everywhere: the corpus of the parity values of text metrics."""

import random

NAMES = ["The Blue Door", "Anna's Kitchen", "Cafe Nine", "The Old Mill", "St. Mary's Inn", "O'Neil's"]
FOODS = ["Thai", "French", "vegetarian", "low-cost Italian", "fish and chips", "Indian"]
AREAS = ["in the city centre", "by the river", "near the old bridge", "5 km/h away from noise", "downtown"]
PRICES = ["\u00a320-25", "less than \u00a320", "\u00a33.50", "1,000 yen", "$30", "high"]
RATES = ["5 out of 5", "3/5", "low", "4.5 stars", "50%"]
SHAPES = [
    "{name} is a {food} place {area}. It's rated {rate}, and prices are {price}.",
    "{name}, {area}, serves {food} food; the price range is {price} (rating: {rate}).",
    "You'll find {food} dishes at {name} {area} - they cost {price}! Customers say {rate}.",
    "There is a family-friendly restaurant called {name} {area}. The {food} menu isn't dear: {price}.",
    'A "{food}" restaurant, {name}, has {rate} ratings. You can\u2019t miss it {area}, {price}.',
    "Don't expect {food} food for {price} at {name}... It is {area} & cannot be booked; rated {rate}.",
]


def made_up_texts(rows: int = 60) -> tuple[list[str], list[list[str]]]:
    """(predictions, one to five references per row). A prediction tells of the same place in other words."""
    rng = random.Random(7)
    predictions, references = [], []
    for _ in range(rows):
        place = {
            "name": rng.choice(NAMES),
            "food": rng.choice(FOODS),
            "area": rng.choice(AREAS),
            "price": rng.choice(PRICES),
            "rate": rng.choice(RATES),
        }
        references.append([rng.choice(SHAPES).format(**place) for _ in range(1 + int(rng.random() * 5))])
        said = rng.choice(SHAPES).format(**(place | {"rate": rng.choice(RATES), "food": rng.choice(FOODS)}))
        words = [word for word in said.split(" ") if rng.random() < 0.9]
        at = int(rng.random() * (len(words) - 2))
        predictions.append(" ".join([*words[:at], words[at + 1], words[at], *words[at + 2 :]]))
    return predictions, references
