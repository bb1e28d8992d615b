"""Word lists that several skills draw from: names of people, places and everyday things.

Used by recall, echo and tools."""

from __future__ import annotations


def split(words: str) -> list[str]:
    """The words of a list written with spaces."""
    return words.split()


NAMES = split(
    "Alice Bob Carol David Emma Frank Grace Henry Iris Jack Kate Leo Maria Nora Oscar Paula Quinn Rosa Sam Tina Uma "
    "Victor Wendy Xavier Yara Zoe Anna Ben Clara Daniel Eva Felix Gina Hugo Ida John Karen Liam Mia Noah Olivia Peter "
    "Rachel Simon Tom Ursula Vera Walter Yusuf Zara Amir Bella Chen Diego Elena Fatima George Hana Ivan Julia Kenji "
    "Lena Mei Nadia Omar Priya Raj Sofia Tariq Viktor Lucy Max Ruth Paul Sarah James Mary Linda Robert Michael "
    "Susan Lisa"
)

NAMES_ZH = [
    surname + given
    for surname in "王李张刘陈杨赵黄周吴徐孙"
    for given in ("小明", "小红", "伟", "芳", "丽", "强", "静", "磊", "洋", "敏", "建国", "晓燕", "雪", "杰")
]
NAMES_ZH += split("小明 小红 小华 小丽 小刚 小芳 大伟 阿强 爱丽丝 鲍勃")

PLACES = split(
    "Paris London Berlin Madrid Rome Vienna Lisbon Dublin Oslo Athens Moscow Tokyo Beijing Shanghai Shenzhen Hangzhou "
    "Bangkok Cairo Lima Boston Chicago Seattle Toronto Sydney Delhi Mumbai Seoul Hanoi Jakarta Nairobi Zurich Munich "
    "Hamburg Milan Prague Warsaw Budapest Helsinki Stockholm Copenhagen Denver Dallas Houston Miami Atlanta"
)
PLACES += ["New York", "San Francisco", "Los Angeles", "Hong Kong", "Cape Town", "Buenos Aires"]

PLACES_ZH = split(
    "北京 上海 广州 深圳 杭州 南京 成都 重庆 武汉 西安 天津 苏州 青岛 大连 厦门 长沙 昆明 哈尔滨 "
    "香港 台北 东京 巴黎 伦敦 柏林 纽约 罗马"
)

COLOURS = split("red blue green yellow orange purple pink brown black white grey silver gold turquoise")
COLOURS_ZH = split("红色 蓝色 绿色 黄色 橙色 紫色 粉色 棕色 黑色 白色 灰色 银色 金色")

FOODS = split("pizza soup rice noodles cake salad bread cheese chocolate pancakes dumplings pasta curry sushi apples")
FOODS_ZH = split("饺子 面条 米饭 蛋糕 披萨 汤圆 包子 豆腐 火锅 烤鸭 巧克力 寿司 苹果 西瓜 馒头")

JOBS = split("teacher doctor baker pilot farmer painter nurse cook singer writer lawyer driver gardener engineer")
JOBS_ZH = split("老师 医生 面包师 飞行员 农民 画家 护士 厨师 歌手 作家 律师 司机 园丁 工程师")

LANGUAGES = split("French German Spanish Italian Chinese Japanese Russian Greek Korean Arabic")
LANGUAGES_ZH = split("法语 德语 西班牙语 意大利语 英语 日语 俄语 希腊语 韩语 阿拉伯语")
