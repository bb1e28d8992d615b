"""The tools that conversations may show: the kinds, and kinds made up on the spot.

Add, multiply and the weather, as function-calling tutorials declare them, are the likeliest.
Used by tools.py."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from demo.chance import chance, made_up_word, number
from demo.skills import words
from demo.skills.animals import ANIMALS
from demo.skills.tool_declaration import Draw, Parameter, ToolKind


def _from(
    english: list[str] | tuple[str, ...], chinese: list[str] | tuple[str, ...], made_up_share: float = 0.0
) -> Draw:
    def draw(rng: random.Random, language: str) -> str:
        if chance(rng, made_up_share):
            return made_up_word(rng).capitalize() if chance(rng, 0.5) else made_up_word(rng)
        return rng.choice(english if language == "en" else chinese)

    return draw


def _integer(names: tuple[str, ...], descriptions: tuple[str, ...], max_digits: int = 4) -> Parameter:
    return Parameter(names, ("int", "integer", "number"), descriptions, lambda rng, _: number(rng, max_digits))


def _string(names: tuple[str, ...], descriptions: tuple[str, ...], draw: Draw) -> Parameter:
    return Parameter(names, ("string",), descriptions, draw)


_PLACE = _from(words.PLACES, words.PLACES_ZH, 0.15)
_PERSON = _from(words.NAMES, words.NAMES_ZH, 0.15)
_WORD = _from([a.name for a in ANIMALS], [a.name_zh for a in ANIMALS], 0.5)
_FOOD = _from(words.FOODS, words.FOODS_ZH, 0.1)
_MESSAGE = _from(
    (
        "I will be late",
        "dinner is ready",
        "see you at noon",
        "happy birthday",
        "call me back",
        "the train is on time",
        "good luck",
        "thank you for the book",
        "the meeting is over",
        "bring some bread",
    ),
    (
        "我会迟到",
        "晚饭好了",
        "中午见",
        "生日快乐",
        "给我回电话",
        "火车准点",
        "祝你好运",
        "谢谢你的书",
        "会议结束了",
        "买点面包",
    ),
)
_TITLE = _from(
    ("Moon River", "Blue Sky", "Silent Night", "Old Road", "Summer Rain", "Golden Hour", "Green Hills"),
    ("月亮河", "蓝天", "平安夜", "老路", "夏天的雨", "青山", "茉莉花"),
    0.2,
)
_ROOM = _from(
    ("kitchen", "bedroom", "garage", "office", "garden", "hall"), ("厨房", "卧室", "车库", "办公室", "花园", "客厅")
)
_CONDITION = _from(
    ("sunny", "rainy", "cloudy", "windy", "foggy", "snowy"), ("晴", "雨", "多云", "大风", "有雾", "小雪")
)
_CURRENCY = ("USD", "EUR", "CNY", "JPY", "GBP")
_NUMBER_DESCRIPTIONS = (
    "A number",
    "The first number",
    "The second number",
    "An integer",
    "One of the two numbers",
    "Operand",
)
_A = ("a", "x", "first", "num1", "left", "a", "m", "number1")
_B = ("b", "y", "second", "num2", "right", "b", "n", "number2")


def _time(rng: random.Random, _: str) -> str:
    return f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"


def _arithmetic(
    key: str,
    names: str,
    descriptions: tuple[str, ...],
    en: tuple[str, ...],
    zh: tuple[str, ...],
    compute: Callable[[int, int], int],
    answer: str,
    answer_zh: str,
) -> ToolKind:
    return ToolKind(
        key,
        tuple(names.split()),
        descriptions,
        (_integer(_A, _NUMBER_DESCRIPTIONS), _integer(_B, _NUMBER_DESCRIPTIONS)),
        {"en": en, "zh": zh},
        lambda rng, language, values: {"result": compute(*values)},
        {"en": answer, "zh": answer_zh},
        is_arithmetic=True,
    )


ADD = _arithmetic(
    "add",
    "add add sum plus add_numbers addition calculate_sum add_two_numbers Add",
    (
        "Compute the sum of two numbers",
        "Add two numbers",
        "Adds two integers and returns the result",
        "Sum of a and b",
        "Returns the sum of two integers.",
        "Add two numbers together.",
        "计算两个数的和",
    ),
    (
        "What is {0} plus {1}?",
        "What is {0} + {1}?",
        "Add {0} and {1}.",
        "Compute {0}+{1}",
        "How much is {0} plus {1}?",
        "Please add {0} and {1}.",
        "{0} + {1} = ?",
        "Calculate the sum of {0} and {1}.",
        "What is the sum of {0} and {1}?",
        "Use the tool to add {0} and {1}.",
        "Can you add {0} to {1}?",
        "{0}+{1}?",
    ),
    (
        "{0}加{1}等于多少？",
        "计算{0}+{1}。",
        "请把{0}和{1}相加。",
        "{0}加上{1}是多少？",
        "{0}与{1}的和是多少？",
        "{0}+{1}=?",
    ),
    lambda a, b: a + b,
    "{0} plus {1} is {result}.",
    "{0}加{1}等于{result}。",
)
MUL = _arithmetic(
    "mul",
    "mul mul multiply times product multiply_numbers multiplication Multiply calculate_product",
    (
        "Calculate the product of two numbers",
        "Multiply two numbers",
        "Multiplies two integers",
        "Product of a and b",
        "Returns the product of two integers.",
        "Multiply two numbers together.",
        "计算两个数的积",
    ),
    (
        "What is {0} times {1}?",
        "What is {0} * {1}?",
        "Multiply {0} by {1}.",
        "Compute {0}*{1}",
        "How much is {0} times {1}?",
        "Please multiply {0} and {1}.",
        "{0} * {1} = ?",
        "Calculate the product of {0} and {1}.",
        "What is the product of {0} and {1}?",
        "Use the tool to multiply {0} and {1}.",
        "{0}×{1}?",
        "What is {0} multiplied by {1}?",
    ),
    (
        "{0}乘{1}等于多少？",
        "计算{0}*{1}。",
        "请把{0}和{1}相乘。",
        "{0}乘以{1}是多少？",
        "{0}与{1}的积是多少？",
        "{0}×{1}=?",
    ),
    lambda a, b: a * b,
    "{0} times {1} is {result}.",
    "{0}乘{1}等于{result}。",
)
_SUBTRACT = _arithmetic(
    "subtract",
    "sub subtract minus difference subtract_numbers",
    ("Subtract the second number from the first", "Calculate the difference of two numbers", "计算两个数的差"),
    ("What is {0} minus {1}?", "Compute {0}-{1}", "How much is {0} minus {1}?", "What is {0} - {1}?"),
    ("{0}减{1}等于多少？", "计算{0}-{1}。", "{0}减去{1}是多少？"),
    lambda a, b: a - b,
    "{0} minus {1} is {result}.",
    "{0}减{1}等于{result}。",
)
_LARGER = _arithmetic(
    "larger",
    "max larger maximum get_max compare",
    ("Return the larger of two numbers", "Find the maximum of two numbers"),
    ("Which is larger, {0} or {1}?", "What is the maximum of {0} and {1}?", "Is {0} or {1} bigger?"),
    ("{0}和{1}哪个更大？", "{0}和{1}的最大值是多少？"),
    max,
    "Of {0} and {1}, the larger is {result}.",
    "{0}和{1}中更大的是{result}。",
)

_WEATHER = ToolKind(
    "weather",
    ("get_weather", "get_current_weather", "weather", "get_current_weather", "weather_forecast", "query_weather"),
    (
        "Get the current weather in a given location",
        "Query the weather of a city",
        "Returns the weather for a place",
        "Get current weather information",
        "查询城市的天气",
    ),
    (
        _string(
            ("location", "city", "place", "city_name", "town"),
            ("The city and state, e.g. San Francisco, CA", "The name of the city", "The place to look up", "城市名"),
            _PLACE,
        ),
        Parameter(
            ("unit", "units", "scale"),
            ("string",),
            ("Temperature unit", "The unit of the temperature"),
            lambda rng, _: rng.choice(("celsius", "fahrenheit")),
            {"en": " Please answer in {v}.", "zh": "请用{v}回答。"},
            ("celsius", "fahrenheit"),
        ),
    ),
    {
        "en": (
            "What is the weather in {0}?",
            "What's the weather like in {0} today?",
            "How is the weather in {0}?",
            "Tell me the weather in {0}.",
            "Is it warm in {0} today?",
            "What's the weather like in {0}?",
            "Weather in {0}?",
            "Do I need an umbrella in {0}?",
        ),
        "zh": ("{0}的天气怎么样？", "{0}今天天气如何？", "查一下{0}的天气。", "今天{0}冷吗？", "告诉我{0}的天气。"),
    },
    lambda rng, language, values: {"temperature": rng.randint(-15, 40), "condition": _CONDITION(rng, language)},
    {"en": "In {0} it is {condition} and {temperature} degrees.", "zh": "{0}现在{condition}，{temperature}度。"},
    other_fields={"condition": ("weather", "description", "sky", "conditions"), "temperature": ("temp", "degrees")},
)
_TEMPERATURE = replace(
    _WEATHER,
    result=lambda rng, language, values: {"temperature": rng.randint(-15, 40)},
    answers={"en": "In {0} it is {temperature} degrees.", "zh": "{0}现在{temperature}度。"},
)

_KINDS: tuple[ToolKind, ...] = (
    ADD,
    MUL,
    _WEATHER,
    _SUBTRACT,
    _LARGER,
    ToolKind(
        "time",
        ("get_time", "current_time", "get_current_time", "clock"),
        ("Get the current time in a city", "Tells the local time", "查询当地时间"),
        (_string(("city", "location", "place", "timezone"), ("The city", "The place whose time is wanted"), _PLACE),),
        {
            "en": ("What time is it in {0}?", "Tell me the time in {0}.", "How late is it in {0}?"),
            "zh": ("{0}现在几点？", "告诉我{0}的时间。"),
        },
        lambda rng, language, values: {"time": _time(rng, language)},
        {"en": "In {0} it is {time} now.", "zh": "{0}现在是{time}。"},
    ),
    ToolKind(
        "translate",
        ("translate", "translate_text", "translator"),
        ("Translate a text into another language", "Translates text"),
        (
            _string(("text", "sentence", "word"), ("The text to translate", "What to translate"), _MESSAGE),
            _string(
                ("target_language", "language", "to"),
                ("The language to translate into", "Target language"),
                _from(words.LANGUAGES, words.LANGUAGES_ZH),
            ),
        ),
        {
            "en": ('Translate "{0}" into {1}.', 'How do you say "{0}" in {1}?'),
            "zh": ("把“{0}”翻译成{1}。", "“{0}”用{1}怎么说？"),
        },
        lambda rng, language, values: {"translation": f"{made_up_word(rng)} {made_up_word(rng)}"},
        {"en": 'In {1} it is "{translation}".', "zh": "用{1}说是“{translation}”。"},
    ),
    ToolKind(
        "search",
        ("search", "web_search", "google_search", "search_web", "lookup"),
        ("Search the web", "Look something up on the internet", "搜索网络"),
        (_string(("query", "q", "keywords"), ("What to search for", "The search query"), _WORD),),
        {
            "en": ("Search for {0}.", "Look up {0} on the web.", "Find something about {0} on the internet."),
            "zh": ("搜索{0}。", "在网上查一下{0}。"),
        },
        lambda rng, language, values: {"pages": number(rng, 4)},
        {"en": "I found {pages} pages about {0}.", "zh": "我找到了{pages}个关于{0}的网页。"},
    ),
    ToolKind(
        "alarm",
        ("set_alarm", "create_alarm", "alarm"),
        ("Set an alarm", "Sets an alarm clock", "设置闹钟"),
        (_string(("time", "at", "when"), ("The time of the alarm, HH:MM", "When to ring"), _time),),
        {
            "en": ("Set an alarm for {0}.", "Wake me at {0}.", "Please wake me up at {0}."),
            "zh": ("设一个{0}的闹钟。", "{0}叫我起床。"),
        },
        lambda rng, language, values: {"status": "ok"},
        {"en": "Your alarm is set for {0}.", "zh": "闹钟已经设在{0}。"},
    ),
    ToolKind(
        "message",
        ("send_message", "send_text", "message", "send_sms"),
        ("Send a message to a person", "Sends a text message", "发送消息"),
        (
            _string(("recipient", "to", "name", "contact"), ("Who gets the message", "The recipient"), _PERSON),
            _string(("message", "text", "content", "body"), ("The text of the message", "What to send"), _MESSAGE),
        ),
        {
            "en": ('Send {0} the message "{1}".', 'Tell {0}: "{1}".', 'Write to {0}: "{1}".'),
            "zh": ("给{0}发消息：“{1}”。", "告诉{0}：“{1}”。"),
        },
        lambda rng, language, values: {"status": "sent"},
        {"en": "The message to {0} was sent.", "zh": "给{0}的消息已经发送。"},
    ),
    ToolKind(
        "music",
        ("play_music", "play_song", "play", "music_player"),
        ("Play a song", "Plays music", "播放歌曲"),
        (_string(("title", "song", "name", "track"), ("The title of the song", "Which song"), _TITLE),),
        {
            "en": ("Play {0}.", "Please play the song {0}.", "I want to hear {0}."),
            "zh": ("播放{0}。", "我想听{0}这首歌。"),
        },
        lambda rng, language, values: {"status": "playing"},
        {"en": "Now playing {0}.", "zh": "正在播放{0}。"},
    ),
    ToolKind(
        "currency",
        ("convert_currency", "exchange", "currency_converter"),
        ("Convert money between currencies", "Currency conversion"),
        (
            _integer(("amount", "value", "money"), ("The amount of money", "How much")),
            Parameter(
                ("from", "source", "from_currency"),
                ("string",),
                ("The source currency",),
                lambda rng, _: rng.choice(_CURRENCY),
                None,
                _CURRENCY,
            ),
            Parameter(
                ("to", "target", "to_currency"),
                ("string",),
                ("The target currency",),
                lambda rng, _: rng.choice(_CURRENCY),
                None,
                _CURRENCY,
            ),
        ),
        {
            "en": ("Convert {0} {1} to {2}.", "How much is {0} {1} in {2}?"),
            "zh": ("把{0} {1}换成{2}。", "{0} {1}是多少{2}？"),
        },
        lambda rng, language, values: {"amount": number(rng, 4)},
        {"en": "{0} {1} are {amount} {2}.", "zh": "{0} {1}等于{amount} {2}。"},
    ),
    ToolKind(
        "stock",
        ("get_stock_price", "stock_price", "stock"),
        ("Get the price of a stock", "Returns the current share price"),
        (
            _string(
                ("symbol", "ticker", "company"),
                ("The ticker symbol", "The stock symbol"),
                lambda rng, _: "".join(rng.choice("ABCDEFGHIKLMNOPRSTUVXYZ") for _ in range(rng.randint(3, 4))),
            ),
        ),
        {
            "en": ("What is the stock price of {0}?", "How much is one share of {0}?"),
            "zh": ("{0}的股价是多少？", "查一下{0}的股票价格。"),
        },
        lambda rng, language, values: {"price": number(rng, 4)},
        {"en": "One share of {0} costs {price}.", "zh": "{0}的股价是{price}。"},
    ),
    ToolKind(
        "book",
        ("book_table", "reserve_table", "book_restaurant"),
        ("Book a table in a restaurant", "Reserve a table"),
        (
            _string(("restaurant", "place", "name"), ("The name of the restaurant",), _TITLE),
            _integer(("people", "guests", "persons"), ("The number of guests", "For how many people"), 2),
        ),
        {
            "en": ("Book a table at {0} for {1} people.", "Reserve a table for {1} at {0}."),
            "zh": ("在{0}订一张{1}个人的桌子。", "帮我预订{0}，{1}个人。"),
        },
        lambda rng, language, values: {"booking": number(rng, 4)},
        {"en": "Your table at {0} is booked, number {booking}.", "zh": "{0}的桌子订好了，编号{booking}。"},
    ),
    ToolKind(
        "light",
        ("turn_on_light", "light_on", "switch_light"),
        ("Turn on the light in a room", "Switches a lamp on", "打开房间的灯"),
        (_string(("room", "where", "location"), ("The room", "Which room"), _ROOM),),
        {
            "en": (
                "Turn on the light in the {0}.",
                "Light in the {0}, please.",
                "It is dark in the {0}, switch on the light.",
            ),
            "zh": ("打开{0}的灯。", "{0}太暗了，开灯。"),
        },
        lambda rng, language, values: {"status": "on"},
        {"en": "The light in the {0} is on.", "zh": "{0}的灯已经打开。"},
    ),
    ToolKind(
        "distance",
        ("get_distance", "distance", "route_length"),
        ("Distance between two places", "Compute how far apart two cities are"),
        (
            _string(("origin", "start", "from"), ("Where to start",), _PLACE),
            _string(("destination", "end", "to"), ("Where to go",), _PLACE),
        ),
        {
            "en": ("How far is it from {0} to {1}?", "What is the distance between {0} and {1}?"),
            "zh": ("从{0}到{1}有多远？", "{0}和{1}的距离是多少？"),
        },
        lambda rng, language, values: {"kilometres": number(rng, 4)},
        {"en": "From {0} to {1} it is {kilometres} kilometres.", "zh": "从{0}到{1}有{kilometres}公里。"},
    ),
    ToolKind(
        "recipe",
        ("find_recipe", "get_recipe", "recipe"),
        ("Find a recipe for a dish", "Search recipes", "查找菜谱"),
        (_string(("dish", "food", "meal"), ("The name of the dish",), _FOOD),),
        {
            "en": ("How do I cook {0}?", "Find a recipe for {0}.", "I want to make {0}."),
            "zh": ("{0}怎么做？", "找一个{0}的菜谱。"),
        },
        lambda rng, language, values: {"minutes": rng.randint(5, 99), "recipe": made_up_word(rng)},
        {"en": "The recipe {recipe} for {0} takes {minutes} minutes.", "zh": "{0}的菜谱{recipe}需要{minutes}分钟。"},
    ),
    ToolKind(
        "reminder",
        ("create_reminder", "remind", "add_reminder"),
        ("Create a reminder", "Remind the user of something"),
        (
            _string(("text", "what", "title"), ("What to remember",), _MESSAGE),
            _string(("time", "at", "when"), ("When to remind, HH:MM",), _time),
        ),
        {"en": ('Remind me at {1}: "{0}".', 'At {1} remind me of "{0}".'), "zh": ("{1}提醒我：“{0}”。",)},
        lambda rng, language, values: {"status": "ok"},
        {"en": "I will remind you at {1}.", "zh": "我会在{1}提醒你。"},
    ),
    ToolKind(
        "letters",
        ("count_letters", "word_length", "letter_count"),
        ("Count the letters of a word", "Length of a word"),
        (_string(("word", "text", "string"), ("The word",), _WORD),),
        {
            "en": ("How many letters has {0}?", "Count the letters of {0}.", "How long is the word {0}?"),
            "zh": ("{0}有几个字？", "数一数{0}有多少个字。"),
        },
        lambda rng, language, values: {"count": len(values[0])},
        {"en": "{0} has {count} letters.", "zh": "{0}有{count}个字。"},
    ),
    ToolKind(
        "random",
        ("random_number", "roll", "random_int"),
        ("Draw a random number between two limits",),
        (
            _integer(("min", "low", "minimum"), ("The smallest number",), 2),
            _integer(("max", "high", "maximum"), ("The largest number",), 3),
        ),
        {
            "en": ("Give me a random number between {0} and {1}.", "Draw a number from {0} to {1}."),
            "zh": ("给我一个{0}到{1}之间的随机数。",),
        },
        lambda rng, language, values: {"number": rng.randint(min(values), max(values))},
        {"en": "Your random number is {number}.", "zh": "随机数是{number}。"},
    ),
    ToolKind(
        "population",
        ("get_population", "population"),
        ("Number of people who live in a city", "Population of a place"),
        (_string(("city", "place", "location"), ("The city",), _PLACE),),
        {
            "en": ("How many people live in {0}?", "What is the population of {0}?"),
            "zh": ("{0}有多少人口？", "{0}住着多少人？"),
        },
        lambda rng, language, values: {"population": number(rng, 4)},
        {"en": "{population} people live in {0}.", "zh": "{0}有{population}人。"},
    ),
    ToolKind(
        "user",
        ("get_user", "find_user", "user_info"),
        ("Look up a user's number", "Find a person in the database"),
        (_string(("name", "username", "person"), ("The name of the user",), _PERSON),),
        {
            "en": ("What is the phone number of {0}?", "Find the number of {0}."),
            "zh": ("{0}的电话是多少？", "查一下{0}的号码。"),
        },
        lambda rng, language, values: {"phone": number(rng, 4)},
        {"en": "The number of {0} is {phone}.", "zh": "{0}的号码是{phone}。"},
    ),
    ToolKind(
        "order",
        ("order_food", "order", "buy_food"),
        ("Order food", "Order a dish for delivery"),
        (
            _string(("dish", "item", "food"), ("What to order",), _FOOD),
            _integer(("quantity", "count", "amount"), ("How many",), 2),
        ),
        {
            "en": ("Order {1} portions of {0}.", "I would like {1} times {0}, please order."),
            "zh": ("点{1}份{0}。", "帮我订{1}份{0}。"),
        },
        lambda rng, language, values: {"order": number(rng, 4)},
        {"en": "Your order of {0} has the number {order}.", "zh": "{0}已下单，编号{order}。"},
    ),
)


def any_kind(rng: random.Random) -> ToolKind:
    """A kind from the catalogue (add, mul and the weather more often) or, for a quarter, one made up."""
    if chance(rng, 0.25):
        return _made_up_kind(rng)
    if chance(rng, 0.3):
        return rng.choice((ADD, MUL, _WEATHER, _TEMPERATURE))
    return rng.choice(_KINDS)


_VERBS = ("get", "find", "read", "fetch", "query", "check", "show", "load", "measure", "compute")
_NOUNS = ("weight", "price", "height", "status", "level", "score", "speed", "owner", "label", "size", "rank", "origin")
_THINGS = ("item", "device", "file", "plant", "ship", "machine", "book", "parcel", "account", "star")


def _made_up_kind(rng: random.Random) -> ToolKind:
    noun = made_up_word(rng) if chance(rng, 0.4) else rng.choice(_NOUNS)
    thing = rng.choice(_THINGS)
    name = f"{rng.choice(_VERBS)}_{noun}" if chance(rng, 0.7) else made_up_word(rng)
    is_number = chance(rng, 0.4)
    parameter_name = (thing, f"{thing}_id", "id", "key", made_up_word(rng), "target")[rng.randrange(6)]
    parameter = Parameter(
        (parameter_name,),
        ("integer",) if is_number else ("string",),
        (f"The {thing}", f"Which {thing}"),
        (lambda rng, _: number(rng)) if is_number else (lambda rng, _: made_up_word(rng)),
    )
    return ToolKind(
        noun,
        (name,),
        (f"Returns the {noun} of a {thing}.", f"Look up the {noun} of a {thing}", f"Get the {noun}"),
        (parameter,),
        {
            "en": (
                f"What is the {noun} of {thing} {{0}}?",
                f"Find the {noun} of {{0}}.",
                f"Tell me the {noun} of {thing} {{0}}.",
            ),
            "zh": (f"{{0}}的{noun}是多少？", f"查一下{{0}}的{noun}。"),
        },
        lambda rng, language, values: {noun: number(rng) if chance(rng, 0.6) else made_up_word(rng)},
        {"en": f"The {noun} of {{0}} is {{{noun}}}.", "zh": f"{{0}}的{noun}是{{{noun}}}。"},
    )
