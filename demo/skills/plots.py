"""The plots of the stories: ten sentences each, the same plots in English and in Chinese.

A plot has a thing that the story turns on and a place where it turns; every thing belongs to one plot only.
A sentence is a tuple of phrasings with the slots {a} and {b} (the animals), {one_a} and {one_b} (introduced, with
trait), {home}, {food}, {thing} and {place}. Each phrasing holds exactly one full stop, its last character or, where
speech ends the sentence, the last before the closing quote.
Used by stories.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot; `things` and `places` pair up with those of the other language by position."""

    things: tuple[str, ...]
    places: tuple[str, ...]
    sentences: tuple[tuple[str, ...], ...]


ENGLISH: tuple[Plot, ...] = (
    Plot(  # something is lost and found
        ("silver bell", "red kite", "blue scarf", "golden key"),
        ("the old mill", "the stone bridge", "the village well", "the windy hill"),
        (
            ("Once upon a time, {one_a} and {one_b} lived {home}.", "Long ago, {one_a} and {one_b} lived {home}."),
            (
                "One sunny morning, the {a} saw that the {thing} was gone.",
                "One rainy morning, the {a} could not find the {thing} anywhere.",
            ),
            (
                '"Do not worry," said the {b}, "we will look for it together."',
                "The {b} saw how sad the {a} was and promised to help.",
            ),
            (
                "First they searched under the bushes, but there they found only dry leaves.",
                "First they searched behind the trees, but there they found only small stones.",
            ),
            (
                "Then they met a kind farmer, who had seen something shining near {place}.",
                "Then they met a little girl, who had seen something bright near {place}.",
            ),
            (
                "The {a} and the {b} hurried to {place} before the sun went down.",
                "So the {a} and the {b} ran to {place} as fast as they could.",
            ),
            ("There, in the tall grass, lay the {thing}.", "There, behind a round stone, lay the {thing}."),
            (
                "The {a} jumped for joy and thanked the {b} many times.",
                "The {a} laughed and hugged the {b} for a long time.",
            ),
            (
                "In the evening they shared some {food} and sang until the stars came out.",
                "That night they ate {food} together and looked at the moon.",
            ),
            (
                "From that day on, the {a} knew that a good friend is worth more than any {thing}.",
                "And the {a} learned that a true friend is better than any {thing}.",
            ),
        ),
    ),
    Plot(  # a contest that ends in friendship
        ("golden cup", "shiny medal", "flower crown", "silver ribbon"),
        ("the tall tower", "the big oak", "the white gate", "the long fence"),
        (
            ("Once there was {one_a} who lived {home}.", "Many years ago, {one_a} lived {home}."),
            (
                "One day {one_b} came by and asked the {a} for a race.",
                "One spring day {one_b} said that nobody was faster, not even the {a}.",
            ),
            (
                "The winner would get the {thing}, and everybody came to watch.",
                "The prize was the {thing}, and the whole village was excited.",
            ),
            (
                "They started at dawn and ran side by side to {place}.",
                "At noon they set off together in the direction of {place}.",
            ),
            (
                "Near {place} the {b} slipped on a wet stone and fell down.",
                "Just before {place} the {b} stepped on a thorn and cried out.",
            ),
            (
                "The {a} could have won easily, but stopped at once and turned back.",
                "The {a} was far ahead, but heard the cry and came back.",
            ),
            (
                '"Winning can wait," said the {a}, "let me help you up."',
                "The {a} gently helped the {b} to stand up again.",
            ),
            (
                "Slowly they walked on together and crossed the line at the same time.",
                "Step by step they went on, and they reached the end side by side.",
            ),
            (
                "The judge smiled and gave the {thing} to both of them.",
                "Everybody cheered, and the {thing} was given to both of them.",
            ),
            (
                "Since then the {a} and the {b} have been the best of friends.",
                "Ever since, the {a} and the {b} share their {food} and never quarrel.",
            ),
        ),
    ),
    Plot(  # sharing in winter
        ("warm blanket", "woollen coat", "iron stove", "clay lamp"),
        ("the empty hut", "the small cottage", "the dark cave", "the hollow tree"),
        (
            (
                "One cold winter, {one_a} was walking through the deep snow.",
                "It was the coldest winter of all, and {one_a} was far from home.",
            ),
            (
                "The {a} found shelter in {place}, where somebody had left the {thing}.",
                "In {place} the {a} discovered the {thing} and was very glad.",
            ),
            (
                "In the middle of the night there was a soft knock at the door.",
                "When it grew dark, somebody knocked three times.",
            ),
            ("Outside stood {one_b}, shaking with cold.", "It was {one_b}, covered with snow from head to foot."),
            (
                '"Please let me in," said the {b}, "I have nowhere to go."',
                "The {b} asked politely to come in for one night.",
            ),
            (
                "The {a} thought for a moment, because the {thing} was not very big.",
                "The {a} was a little afraid, for they had never met before.",
            ),
            (
                "Then the {a} opened the door wide and shared the {thing} with the {b}.",
                "But the {a} smiled and made room for the {b} beside the {thing}.",
            ),
            (
                "The {b} was thankful and brought out a small bag of {food}.",
                "In return the {b} offered some {food}, and they had a fine supper.",
            ),
            (
                "All night they told each other tales, and the wind outside did not matter any more.",
                "They talked until morning, and {place} felt like a real home.",
            ),
            (
                "When spring came, the {a} and the {b} still kept the {thing} to remember that night.",
                "Even today the {a} and the {b} keep the {thing} and smile when it snows.",
            ),
        ),
    ),
    Plot(  # crossing the water
        ("wooden boat", "little raft", "rope ladder", "paper ship"),
        ("the green island", "the other shore", "the far beach", "the round lake"),
        (
            ("There once was {one_a} who dreamed of {place}.", "For many years {one_a} had wished to see {place}."),
            (
                "But the water was wide, and the {a} could not go alone.",
                "But the waves were high, and the {a} had no way to get there.",
            ),
            (
                "One morning the {a} told this dream to {one_b}.",
                "One evening the {a} met {one_b} and spoke of this wish.",
            ),
            (
                '"I know what we need," said the {b}, "we must make the {thing}."',
                "The {b} had a plan, and it began with the {thing}.",
            ),
            (
                "For seven days they worked hard and hardly slept.",
                "They gathered branches, strings and leaves for a whole week.",
            ),
            (
                "At last the {thing} was ready, and they packed some {food} for the journey.",
                "When the {thing} was finished, they took some {food} and left at sunrise.",
            ),
            (
                "Halfway across a storm came up, and the {a} was afraid.",
                "Suddenly a strong wind blew, and the {a} began to tremble.",
            ),
            (
                "The {b} held on to the {thing} and sang until the storm was over.",
                "The {b} stayed calm and steered the {thing} through the waves.",
            ),
            (
                "By evening they arrived at {place} and watched the red sunset.",
                "When the sky was clear again, {place} lay before them in the sun.",
            ),
            (
                "The {a} said that the best part of the journey was the {b}.",
                "The {a} and the {b} were happy, because they had made the dream come true together.",
            ),
        ),
    ),
    Plot(  # growing something takes patience
        ("magic seed", "apple tree", "giant pumpkin", "white rose"),
        ("the sunny field", "the back garden", "the river bank", "the school yard"),
        (
            (
                "In a faraway land there was {one_a} who loved all plants.",
                "Once upon a time, {one_a} wanted to grow something special.",
            ),
            (
                "On a market day the {a} bought the {thing} for three coins.",
                "A wise old woman gave the {a} the {thing} as a present.",
            ),
            (
                "The {a} planted it in {place} and waited for a day.",
                "The {a} dug a small hole in {place} and watered it well.",
            ),
            (
                "Nothing happened, and the {a} wanted to give up.",
                "The next morning nothing had changed, and the {a} was sad.",
            ),
            (
                "Then {one_b} came along and looked at the ground.",
                "At that moment {one_b} passed by and asked what was wrong.",
            ),
            (
                '"Good things take time," said the {b}, "let us care for it every day."',
                "The {b} explained that the {thing} needed only water, sun and time.",
            ),
            (
                "So every day the {a} and the {b} met in {place} with a can of water.",
                "From then on the {a} and the {b} came to {place} each morning.",
            ),
            (
                "After many weeks the {thing} was the most beautiful in the whole land.",
                "When summer came, everybody came to admire the {thing}.",
            ),
            (
                "The two friends made a feast with {food} and invited all their neighbours.",
                "They danced around it, ate {food} and laughed all day.",
            ),
            (
                "And so the {a} learned from the {b} that patience brings the finest gifts.",
                "Whenever somebody lost patience, the {a} told the tale of the {b} and the {thing}.",
            ),
        ),
    ),
    Plot(  # a strange light at night
        ("lost star", "glowing lantern", "crystal ball", "shining pearl"),
        ("the black forest", "the quiet valley", "the old castle", "the high cliff"),
        (
            ("A long time ago, {one_a} and {one_b} lived {home}.", "Once {one_a} and {one_b} were neighbours {home}."),
            (
                "One dark night they saw a strange light over {place}.",
                "One night a bright light woke them, and it came from {place}.",
            ),
            (
                "The {b} wanted to hide, but the {a} wanted to know what it was.",
                "The {b} was scared, but the {a} took a deep breath and stood up.",
            ),
            (
                '"Stay close to me," said the {a}, "and nothing will happen to us."',
                "Together they walked into the night, one step after the other.",
            ),
            (
                "The path to {place} was narrow and full of thorns.",
                "On the way to {place} the wind whistled and the branches creaked.",
            ),
            (
                "At the end of the path they found the {thing}, all alone and crying.",
                "There they discovered the {thing}, which was shaking with cold.",
            ),
            (
                "It had fallen from a cart and did not know the way home.",
                "It told them that it had been forgotten there many years ago.",
            ),
            (
                "The {a} carried the {thing} carefully, and the {b} lit the way with a song.",
                "The {b} wrapped the {thing} in leaves, and the {a} took it home.",
            ),
            (
                "From then on the {thing} shone in their window every night.",
                "They put the {thing} on a shelf, and it was never lonely again.",
            ),
            (
                "And when travellers saw its light, the {a} and the {b} gave them {food} and a bed.",
                "Thanks to the brave {a} and the {b}, nobody was afraid of the dark any more.",
            ),
        ),
    ),
)

CHINESE: tuple[Plot, ...] = (
    Plot(
        ("银铃铛", "红风筝", "蓝围巾", "金钥匙"),
        ("老磨坊", "石桥", "村口的水井", "多风的山坡"),
        (
            ("从前，{one_a}和{one_b}住在{home}。", "很久以前，{one_a}和{one_b}一起住在{home}。"),
            ("一个晴朗的早晨，{a}发现{thing}不见了。", "一个下雨的早晨，{a}怎么也找不到{thing}。"),
            ("“别担心，”{b}说，“我们一起去找。”", "{b}看到{a}很难过，答应帮忙。"),
            ("他们先在灌木丛下找，可是只找到了干树叶。", "他们先在大树后面找，可是只找到了小石头。"),
            (
                "后来他们遇见一位善良的农夫，他在{place}附近看见过发光的东西。",
                "后来他们遇见一个小女孩，她在{place}附近看见过亮亮的东西。",
            ),
            ("太阳下山之前，{a}和{b}赶到了{place}。", "于是{a}和{b}飞快地跑向{place}。"),
            ("在那里，高高的草丛中躺着{thing}。", "在那里，圆石头后面正是{thing}。"),
            ("{a}高兴得跳了起来，一次又一次地感谢{b}。", "{a}笑了，紧紧地抱住了{b}。"),
            ("晚上，他们一起吃{food}，唱歌唱到星星出来。", "那天夜里，他们分享了{food}，一起看月亮。"),
            ("从那天起，{a}知道好朋友比{thing}更珍贵。", "{a}明白了，真正的朋友胜过任何{thing}。"),
        ),
    ),
    Plot(
        ("金奖杯", "闪亮的奖章", "花环", "银丝带"),
        ("高塔", "大橡树", "白色的大门", "长长的篱笆"),
        (
            ("从前有{one_a}，住在{home}。", "许多年前，{one_a}住在{home}。"),
            ("有一天，{one_b}走过来，要和{a}赛跑。", "春天的一天，{one_b}说没有谁比自己更快，连{a}也不行。"),
            ("赢的人可以得到{thing}，大家都来观看。", "奖品是{thing}，全村的人都很激动。"),
            ("天一亮他们就出发，肩并肩跑向{place}。", "中午他们一起出发，朝着{place}跑去。"),
            ("快到{place}的时候，{b}在湿石头上滑倒了。", "就在{place}前面，{b}踩到了一根刺，叫了起来。"),
            ("{a}本来可以轻松获胜，却马上停下来转身回去。", "{a}已经跑得很远，但是听到叫声就回来了。"),
            ("“输赢不要紧，”{a}说，“我来扶你。”", "{a}轻轻地把{b}扶了起来。"),
            ("他们慢慢地一起走，同时到达了终点。", "他们一步一步向前走，肩并肩到了终点。"),
            ("裁判笑了，把{thing}送给了他们两个。", "大家都欢呼起来，{thing}属于他们两个。"),
            ("从此以后，{a}和{b}成了最好的朋友。", "从那以后，{a}和{b}总是分享{food}，再也不争吵。"),
        ),
    ),
    Plot(
        ("暖毯子", "羊毛大衣", "铁炉子", "陶土灯"),
        ("空木屋", "小茅屋", "黑山洞", "空心大树"),
        (
            ("一个寒冷的冬天，{one_a}走在厚厚的雪里。", "那是最冷的一个冬天，{one_a}离家很远。"),
            ("{a}躲进了{place}，有人在那里留下了{thing}。", "在{place}里，{a}发现了{thing}，非常高兴。"),
            ("半夜里，传来轻轻的敲门声。", "天黑的时候，有人敲了三下门。"),
            ("门外站着{one_b}，冷得发抖。", "原来是{one_b}，从头到脚都是雪。"),
            ("“请让我进来，”{b}说，“我没有地方可去。”", "{b}有礼貌地请求住一个晚上。"),
            ("{a}想了一会儿，因为{thing}不是很大。", "{a}有一点害怕，因为他们从来没有见过面。"),
            ("然后{a}打开了门，和{b}一起用{thing}取暖。", "可是{a}笑了笑，让{b}坐到{thing}旁边。"),
            ("{b}很感激，拿出了一小袋{food}。", "作为感谢，{b}拿出{food}，他们吃了一顿好饭。"),
            ("他们整夜讲故事，外面的风再也不可怕了。", "他们一直聊到天亮，{place}就像真正的家一样。"),
            ("春天来了，{a}和{b}仍然留着{thing}，纪念那个夜晚。", "直到今天，{a}和{b}还留着{thing}，下雪时就会微笑。"),
        ),
    ),
    Plot(
        ("小木船", "小竹筏", "绳梯", "大纸船"),
        ("绿色的小岛", "对岸", "远方的海滩", "圆圆的湖"),
        (
            ("从前有{one_a}，总是梦见{place}。", "多年以来，{one_a}一直想去看看{place}。"),
            ("可是水面很宽，{a}一个人去不了。", "可是浪很高，{a}没有办法过去。"),
            ("一天早晨，{a}把这个梦告诉了{one_b}。", "一天傍晚，{a}遇见了{one_b}，说起了这个愿望。"),
            ("“我知道需要什么，”{b}说，“我们来做{thing}。”", "{b}有一个计划，第一步就是{thing}。"),
            ("他们努力工作了七天，几乎没有睡觉。", "整整一个星期，他们收集树枝、绳子和叶子。"),
            ("最后{thing}做好了，他们带上{food}准备出发。", "{thing}完成以后，他们带着{food}在日出时离开。"),
            ("走到一半，暴风雨来了，{a}很害怕。", "忽然刮起了大风，{a}开始发抖。"),
            ("{b}抓紧{thing}，一直唱歌，直到暴风雨过去。", "{b}很冷静，让{thing}穿过了大浪。"),
            ("傍晚，他们到了{place}，看到了红红的晚霞。", "天又晴了，{place}就在阳光下等着他们。"),
            ("{a}说，这次旅行最美好的就是有{b}在身边。", "{a}和{b}非常快乐，因为他们一起实现了梦想。"),
        ),
    ),
    Plot(
        ("神奇的种子", "苹果树", "大南瓜", "白玫瑰"),
        ("阳光下的田地", "后花园", "河岸", "学校的院子"),
        (
            ("在遥远的地方，有{one_a}，特别喜欢植物。", "从前，{one_a}想种一样特别的东西。"),
            ("赶集那天，{a}用三个硬币买了{thing}。", "一位聪明的老奶奶把{thing}送给了{a}。"),
            ("{a}把它种在{place}，等了一天。", "{a}在{place}挖了一个小坑，浇了很多水。"),
            ("什么也没有发生，{a}想要放弃。", "第二天早上什么也没变，{a}很难过。"),
            ("这时{one_b}走过来，看了看地面。", "正在这时，{one_b}路过，问出了什么事。"),
            ("“好事需要时间，”{b}说，“我们每天来照顾它吧。”", "{b}解释说，{thing}只需要水、阳光和时间。"),
            ("于是{a}和{b}每天带着一壶水来到{place}。", "从那时起，{a}和{b}每天早上都来到{place}。"),
            ("过了很多个星期，{thing}成了全国最美的。", "夏天来了，大家都来欣赏{thing}。"),
            ("两个朋友用{food}办了宴会，请来了所有的邻居。", "他们围着它跳舞，吃着{food}，笑了一整天。"),
            ("就这样，{a}从{b}那里学会了耐心会带来最好的礼物。", "每当有人失去耐心，{a}就讲起{b}和{thing}的故事。"),
        ),
    ),
    Plot(
        ("迷路的星星", "发光的灯笼", "水晶球", "闪光的珍珠"),
        ("黑森林", "安静的山谷", "古老的城堡", "高高的悬崖"),
        (
            ("很久很久以前，{one_a}和{one_b}住在{home}。", "从前，{one_a}和{one_b}是邻居，住在{home}。"),
            ("一个漆黑的夜晚，他们看见{place}上有奇怪的光。", "有一天夜里，一道亮光惊醒了他们，它来自{place}。"),
            ("{b}想躲起来，可是{a}想知道那是什么。", "{b}很害怕，可是{a}深深吸了一口气，站了起来。"),
            ("“跟紧我，”{a}说，“我们不会有事的。”", "他们一起走进黑夜，一步接着一步。"),
            ("去{place}的路很窄，到处是刺。", "在去{place}的路上，风呼呼地吹，树枝吱吱地响。"),
            ("在路的尽头，他们找到了{thing}，它正孤单地哭着。", "在那里他们发现了{thing}，它冷得发抖。"),
            ("它从车上掉了下来，不知道回家的路。", "它说自己许多年前就被忘在这里了。"),
            ("{a}小心地捧着{thing}，{b}用歌声照亮了路。", "{b}用树叶包住{thing}，{a}把它带回了家。"),
            ("从那以后，{thing}每天夜里都在他们的窗前发光。", "他们把{thing}放在架子上，它再也不孤单了。"),
            ("当旅人看到这光，{a}和{b}就给他们{food}和一张床。", "多亏了勇敢的{a}和{b}，再也没有人害怕黑夜。"),
        ),
    ),
)
