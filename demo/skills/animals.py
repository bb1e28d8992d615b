"""The animals that the model knows, in both languages, and strangers: anybody else that a story may be about.

Used by the stories (who takes part) and by the facts (what it eats, where it lives)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from demo.chance import chance, made_up_word


@dataclass(frozen=True, slots=True)
class Animal:
    """An animal; English texts first, Chinese ones with the suffix `_zh`."""

    name: str
    name_zh: str
    trait: str
    trait_zh: str
    home: str
    home_zh: str
    food: str
    food_zh: str
    friend: str  # the English name of the animal it meets when the request names only one

    @property
    def key(self) -> str:
        """What a story leans on: the name, or one key for all strangers, whom the model cannot know."""
        return self.name if self.name in BY_NAME else "stranger"

    @property
    def with_article(self) -> str:
        return ("an " if self.name[0] in "aeiou" else "a ") + self.name


ANIMALS: tuple[Animal, ...] = tuple(
    Animal(*(field.strip() for field in line.split("|")))
    for line in """\
fox|狐狸|clever|聪明的|in a quiet forest|安静的森林里|berries|浆果|rabbit
rabbit|兔子|gentle|温柔的|in a green meadow|绿色的草地上|carrots|胡萝卜|fox
bear|小熊|strong|强壮的|in a mountain cave|山洞里|honey|蜂蜜|bee
owl|猫头鹰|wise|有智慧的|in a hollow oak|空心的橡树里|moths|飞蛾|mouse
mouse|老鼠|tiny|小小的|in an old barn|旧谷仓里|cheese|奶酪|cat
cat|小猫|curious|好奇的|in a village house|村子的房子里|fish|鱼|mouse
dog|小狗|loyal|忠诚的|on a small farm|小农场上|bones|骨头|cat
wolf|灰狼|proud|骄傲的|in the dark woods|黑森林里|meat|肉|sheep
duck|鸭子|cheerful|快乐的|by a round pond|圆圆的池塘边|bread|面包|frog
frog|青蛙|noisy|吵闹的|in a green marsh|绿色的沼泽里|flies|苍蝇|duck
hedgehog|刺猬|shy|害羞的|in a quiet garden|安静的花园里|apples|苹果|squirrel
squirrel|松鼠|busy|忙碌的|in a tall pine|高高的松树上|nuts|坚果|hedgehog
deer|小鹿|graceful|优雅的|in a sunny glade|阳光下的林间|leaves|树叶|bird
bird|小鸟|merry|开心的|in a cherry tree|樱桃树上|seeds|种子|deer
horse|小马|brave|勇敢的|on a wide plain|宽阔的平原上|hay|干草|donkey
donkey|驴子|patient|耐心的|in a stone stable|石头马棚里|thistles|蓟草|horse
sheep|绵羊|soft|柔软的|on a grassy hill|长满青草的山坡上|grass|青草|wolf
goat|山羊|stubborn|倔强的|on a rocky hill|岩石山上|herbs|香草|sheep
pig|小猪|jolly|快活的|in a muddy yard|泥泞的院子里|corn|玉米|goat
hen|母鸡|careful|细心的|in a red coop|红色的鸡舍里|grain|谷子|pig
elephant|大象|kind|善良的|in a warm valley|温暖的山谷里|bananas|香蕉|monkey
monkey|猴子|playful|爱玩的|in the jungle|丛林里|mangoes|芒果|elephant
lion|狮子|mighty|威武的|in a golden savanna|金色的草原上|steak|牛排|mouse
tiger|老虎|fierce|凶猛的|in a bamboo forest|竹林里|beef|牛肉|panda
panda|熊猫|sleepy|爱睡觉的|on a misty mountain|云雾中的山上|bamboo|竹子|tiger
turtle|乌龟|slow|慢吞吞的|by the blue sea|蓝色的大海边|seaweed|海草|crab
crab|螃蟹|quick|敏捷的|on a sandy beach|沙滩上|shells|贝壳|turtle
bee|蜜蜂|hard-working|勤劳的|in a wooden hive|木头蜂箱里|nectar|花蜜|bear
penguin|企鹅|funny|有趣的|on the white ice|白色的冰面上|shrimps|小虾|whale
whale|鲸鱼|huge|巨大的|in the deep ocean|深深的海洋里|krill|磷虾|penguin""".splitlines()
)

BY_NAME: dict[str, Animal] = {animal.name: animal for animal in ANIMALS}

_STRANGERS = (
    ("dragon", "龙"),
    ("knight", "骑士"),
    ("princess", "公主"),
    ("king", "国王"),
    ("wizard", "巫师"),
    ("robot", "机器人"),
    ("giant", "巨人"),
    ("pirate", "海盗"),
    ("girl", "女孩"),
    ("boy", "男孩"),
    ("baker", "面包师"),
    ("fairy", "仙女"),
    ("camel", "骆驼"),
    ("parrot", "鹦鹉"),
    ("snail", "蜗牛"),
    ("spider", "蜘蛛"),
    ("unicorn", "独角兽"),
    ("ghost", "幽灵"),
    ("kangaroo", "袋鼠"),
    ("snake", "蛇"),
    ("astronaut", "宇航员"),
    ("teacher", "老师"),
    ("dolphin", "海豚"),
)


def stranger(rng: random.Random) -> Animal:
    """Somebody with a name that is in no list of animals, often made up, and with the traits of all strangers."""
    name, name_zh = rng.choice(_STRANGERS)
    if chance(rng, 0.4):
        name = name_zh = made_up_word(rng)
    return Animal(name, name_zh, "brave", "勇敢的", "in a small house", "小房子里", "cake", "蛋糕", "rabbit")
