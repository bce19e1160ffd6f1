"""A seeded grammar that writes product ads, short news items and weather reports in English.

Every text belongs to a topic ("New shoes", "Weather in Lisbon", "News from Oslo") and names the product or
the place of that topic at least once.  The choices inside one text agree with each other: a family of
products has its own materials, features and buyers, an adjective brings sentences of its own, the weather
follows from one sky.

Some topics are held out: :func:`sample` never draws them with ``held_out=False`` and draws nothing else with
``held_out=True``.  A held-out ad is a pair of adjective and noun, a held-out place is a place name; no text
for training contains such a place, whatever its kind.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

Kind = Literal["ad", "news", "weather"]
Number = Literal["one", "many", "mass"]
Words = Mapping[str, Sequence[str]]

HELD_OUT_PLACES = 40
HELD_OUT_PAIRS_IN = 20  #: one pair of adjective and product in so many is held out


@dataclass(frozen=True)
class Topic:
    """What a text is about."""

    kind: Kind
    title: str  #: as it stands before the colon: "New shoes", "Weather in Lisbon"
    names: tuple[str, ...]  #: the text names its subject when it holds one of these words
    family: str = ""  #: ads: the product family
    adjective: str = ""  #: ads: may be empty
    noun: str = ""  #: ads: the product in the number of the title
    number: Number = "many"  #: ads: decides on verbs and pronouns
    place: str = ""  #: news and weather

    def named_in(self, text: str) -> bool:
        """Whether the text names the product (in either number) or the place, as whole words."""
        return any(re.search(rf"\b{re.escape(name)}\b", text, re.IGNORECASE) for name in self.names)


@dataclass(frozen=True)
class Sample:
    """One text of the grammar: a topic and what is said about it, without the topic's prefix."""

    topic: Topic
    body: str
    question: str  #: a user's request that this body answers

    @property
    def text(self) -> str:
        """The text in its plain form, ``topic: body``."""
        return f"{self.topic.title}: {self.body}"


@dataclass(frozen=True)
class Family:
    """Products that share materials, features, uses and buyers."""

    products: tuple[str, ...]  #: "shoe/shoes", "+trousers" (plural only) or "=honey" (no plural)
    made: tuple[str, ...]  #: follows "made of"
    feat: tuple[str, ...]  #: follows "with"
    use: tuple[str, ...]  #: follows "for"
    who: tuple[str, ...]  #: people who buy it
    hook: tuple[str, ...]  #: opening sentences
    detail: tuple[str, ...]  #: sentences that fit the family only
    senses: tuple[str, ...]  #: keys of SENSES that fit
    price: tuple[int, int]  #: lowest and highest price in euros


def _split(text: str) -> tuple[str, ...]:
    return tuple(" ".join(item.split()) for item in text.split("|") if item.strip())


def _family(price: tuple[int, int], senses: str, **words: str) -> Family:
    lists = {key: _split(value) for key, value in words.items()}
    return Family(senses=tuple(senses.split()), price=price, **lists)


# Slots that follow the number of the product: {s} ends a verb, {it} and {them} are pronouns, {n} is the noun,
# {an} the noun with its adjective, {a} the same with an article, {this} with this or these.
FAMILIES: dict[str, Family] = {
    "footwear": _family(
        (25, 160),
        "new old hand cheap fine colour bright light strong warm green",
        products="shoe/shoes|boot/boots|sandal/sandals|slipper/slippers|sneaker/sneakers|clog/clogs|"
        "loafer/loafers|running shoe/running shoes|hiking boot/hiking boots|moccasin/moccasins|"
        "rubber boot/rubber boots|dancing shoe/dancing shoes|ankle boot/ankle boots|sock/socks",
        made="soft calf leather|waxed suede|woven canvas|recycled rubber|boiled wool|brushed cotton|natural cork",
        feat="a sole that bends with every step|a heel that never slips|room for all five toes|"
        "a lining that breathes|double stitching at the toe|a cushion under the arch|"
        "a grip that holds on wet stone|an edge that does not rub|a padded collar|"
        "a footbed that remembers your foot",
        use="long walks through the city|the way to work|rainy mornings|a weekend in the hills|"
        "dancing until late|a day on your feet|the first spring stroll|muddy paths and dry pavements",
        who="walkers|nurses and waiters|people who stand all day|children who never sit still|city explorers|"
        "hikers|teachers on their rounds|anyone with tired feet",
        hook="Step into comfort.|Your feet will thank you.|Walk further, ache less.|"
        "Every journey starts at the floor.|Take the long way home.|Put your best foot forward.|"
        "Say goodbye to sore heels.|Feel the ground, not the stones.",
        detail="Slip {them} on in the morning and forget about your feet until night.|"
        "Rain runs off the surface and your toes stay dry.|Wear {them} for a week at home, and send {them} "
        "back if they pinch.|There is no breaking in and no blisters.|"
        "The soles can be replaced, so you keep what you love.|We stock every size from small to very "
        "large, and half sizes too.",
    ),
    "clothes": _family(
        (20, 220),
        "new old hand cheap fine colour bright light warm green",
        products="coat/coats|jacket/jackets|shirt/shirts|dress/dresses|sweater/sweaters|skirt/skirts|"
        "+trousers|+jeans|cardigan/cardigans|raincoat/raincoats|blouse/blouses|waistcoat/waistcoats|"
        "hoodie/hoodies|+pyjamas|suit/suits|T-shirt/T-shirts|apron/aprons",
        made="merino wool|washed linen|organic cotton|heavy denim|soft flannel|brushed twill|fine corduroy|pure silk",
        feat="deep pockets|buttons of real horn|seams that lie flat|a collar that keeps its shape|"
        "a cut that flatters|sleeves you can roll up|a hidden inner pocket|a hem that hangs just right|"
        "cuffs that stay in place|a lining as smooth as water",
        use="cool evenings|the office and the garden party|a walk by the sea|lazy Sundays|a first date|"
        "travelling with one small bag|busy weekdays|dinner with friends",
        who="people who dress once and look good all day|students|travellers|parents in a hurry|"
        "anyone who hates ironing|lovers of simple style|tall people and short ones",
        hook="Dress for the day you want.|Good clothes speak softly.|Look sharp without trying.|"
        "Your wardrobe has been waiting.|Feel at home in what you wear.|Style should never scratch.|"
        "Get dressed in one minute.",
        detail="The cloth grows softer with every wash.|Wash {them} at thirty degrees and hang {them} up, "
        "nothing more.|The colour stays where it belongs, even after fifty washes.|"
        "It is cut for real bodies and sewn to last.|If a button comes off, we sew on another for free.|"
        "Nothing pulls, nothing itches, nothing rides up.",
    ),
    "hats": _family(
        (12, 90),
        "new old hand cheap fine colour bright light warm",
        products="hat/hats|cap/caps|scarf/scarves|glove/gloves|beret/berets|straw hat/straw hats|"
        "mitten/mittens|tie/ties|belt/belts|bow tie/bow ties|headband/headbands|umbrella/umbrellas|"
        "shawl/shawls",
        made="thick felt|woven straw|lambswool|soft leather|fine cashmere|knitted cotton|waxed cloth",
        feat="a band of striped silk|a shape that stays after the rain|a neat little label|"
        "edges sewn by a steady hand|a fit that no wind can loosen|a touch of old cinema|"
        "a colour for every coat|a fold that falls just so",
        use="windy corners|a day at the races|winter markets|picnics in the sun|opera nights|"
        "the walk to the bakery|a wedding in the country",
        who="gentlemen and rascals|people with style|grandmothers and their grandsons|garden party guests|"
        "dog walkers|anyone who likes a finishing touch",
        hook="Top off your look.|Small things change everything.|Let the wind blow.|"
        "Turn heads on the way to the shop.|The finishing touch is here.|Every outfit needs an ending.|"
        "Greet the world in style.",
        detail="Fold {them} into a pocket and shake {them} out again, as good as before.|"
        "One look in the mirror and you will smile.|Choose your size with a piece of string, and we do the "
        "rest.|A drop of rain does no harm at all.|Ask for a gift box, it costs nothing extra.",
    ),
    "bags": _family(
        (18, 240),
        "new old hand cheap fine colour bright light strong green",
        products="bag/bags|backpack/backpacks|suitcase/suitcases|handbag/handbags|wallet/wallets|"
        "purse/purses|shopping bag/shopping bags|briefcase/briefcases|travel bag/travel bags|"
        "school bag/school bags|basket/baskets",
        made="saddle leather|waxed canvas|recycled sailcloth|tough nylon|thick felt|woven willow",
        feat="a pocket for every small thing|straps that do not cut|a zip that never sticks|"
        "a flat place for a laptop|a key hook you find in the dark|corners of brass|"
        "a base that stands by itself|a secret compartment",
        use="the daily train|a weekend away|school and sport|market day|long flights and short trips|"
        "carrying books home from the library",
        who="commuters|students with too many books|travellers|people who carry everything|photographers|"
        "anyone who loses keys",
        hook="Carry less worry.|Pack once, travel far.|Room for everything that matters.|"
        "Your things deserve a good home.|Grab it and go.|Leave the mess at home.",
        detail="It takes a week of clothes and still fits under the seat.|"
        "The handle sits well in the hand, even when the load is heavy.|"
        "Every seam is sewn twice where the weight hangs.|Water stays outside, your papers stay dry.|"
        "If a strap breaks, we mend it, even after ten years.",
    ),
    "candles": _family(
        (6, 45),
        "new old hand cheap fine colour bright warm green small big",
        products="candle/candles|lantern/lanterns|lamp/lamps|tea light/tea lights|oil lamp/oil lamps|"
        "fairy light/fairy lights|table lamp/table lamps|scented candle/scented candles|"
        "floor lamp/floor lamps|night light/night lights",
        made="pure beeswax|clear glass|soy wax|hammered copper|frosted glass|glazed clay",
        feat="a glow like late summer|a calm and steady light|a base that never tips|"
        "a hint of cedar and honey|a shine that flatters every face|a light you can read by|"
        "a soft golden circle|a warm scent of vanilla",
        use="long winter evenings|a bath with a good book|dinner for two|the window on a dark night|"
        "quiet mornings|the garden table in August",
        who="night readers|hosts|romantics|people who love the quiet hour|tired parents|dreamers",
        hook="Let there be a softer light.|Make the evening glow.|Turn off the big light.|"
        "Darkness has met its match.|Warm up the room without a fire.|Some evenings deserve a flame.",
        detail="The light lasts a whole evening and never flickers.|There is no smoke, no smell of burning "
        "and no mess.|Put one in each window and the street will smile.|"
        "Even a plain room looks kind in this light.|One is pleasant, three are a celebration.",
    ),
    "furniture": _family(
        (60, 900),
        "new old hand cheap fine colour bright light strong green small big",
        products="chair/chairs|table/tables|sofa/sofas|bed/beds|bookshelf/bookshelves|desk/desks|"
        "armchair/armchairs|wardrobe/wardrobes|stool/stools|bench/benches|rocking chair/rocking chairs|"
        "cupboard/cupboards|coffee table/coffee tables|mirror/mirrors|mattress/mattresses|hammock/hammocks",
        made="solid oak|local beech|oiled walnut|birch and steel|ash wood from one forest|reclaimed pine",
        feat="joints that need no screws|rounded edges|legs that never wobble|a finish you want to touch|"
        "a line as clear as a drawing|drawers that close with a whisper|"
        "a surface that forgives a spilled cup|proportions that suit a small room",
        use="small flats and wide halls|family dinners|an afternoon nap|working from home|"
        "the sunny corner by the window|guests who stay too long",
        who="young couples|people who read for hours|big families|friends of clear lines|"
        "anyone who moves house often|grandparents",
        hook="Come home and sit down.|Make room for living.|Your house is asking for it.|"
        "Rest is a serious matter.|Good wood never lies.|Build a home, piece by piece.|Stay in tonight.",
        detail="We deliver to your door and carry it up the stairs.|You put it together in ten minutes with "
        "one key.|A little oil once a year is all the care it needs.|"
        "Scratches can be sanded away in an afternoon.|It was tested by four children and a large dog.",
    ),
    "kitchen": _family(
        (8, 180),
        "new old hand cheap fine colour bright light strong green small big",
        products="pan/pans|knife/knives|teapot/teapots|mug/mugs|bowl/bowls|plate/plates|"
        "coffee grinder/coffee grinders|cutting board/cutting boards|kettle/kettles|spoon/spoons|"
        "saucepan/saucepans|wine glass/wine glasses|cake tin/cake tins|toaster/toasters|"
        "pepper mill/pepper mills|casserole/casseroles",
        made="cast iron|polished steel|glazed stoneware|olive wood|thin porcelain|brushed copper",
        feat="a handle that stays cool|a balance you feel at once|a rim that does not drip|"
        "an edge that keeps its line|a base that spreads the heat|a lid that fits like a glove|"
        "a weight that inspires trust|a glaze no two of which are alike",
        use="Sunday breakfast|soups and stews|a quick lunch|feeding a full table|the first cup of the day|"
        "learning your grandmother's recipes",
        who="home cooks|people who love breakfast|students in their first kitchen|serious bakers|hosts|"
        "chefs with little space",
        hook="Cook as if you mean it.|Dinner begins here.|Stir up something good.|"
        "The kitchen is the heart of the house.|Taste starts with good tools.|"
        "Invite your friends, the table is ready.",
        detail="Rinse {them} with warm water, dry {them}, and you are done.|"
        "It goes from the stove to the table without shame.|Nothing sticks, nothing burns, nothing is "
        "wasted.|It is safe in the oven and kind to the hand.|Even a simple egg tastes better this way.",
    ),
    "bakery": _family(
        (2, 30),
        "new trad hand cheap fine fresh sweet small big",
        products="cake/cakes|=bread|cookie/cookies|croissant/croissants|=chocolate|pie/pies|=ice cream|"
        "muffin/muffins|waffle/waffles|pretzel/pretzels|doughnut/doughnuts|=gingerbread|pancake/pancakes|"
        "apple tart/apple tarts|bun/buns|biscuit/biscuits",
        made="stone-ground flour and real butter|dark cocoa and cream|honey, nuts and spice|"
        "rye, salt and time|free-range eggs and fresh milk|ripe fruit and brown sugar",
        feat="a golden crust|a soft heart|a pinch of sea salt|a whisper of cinnamon|a crunch you can hear|"
        "a ribbon of dark chocolate|a dusting of sugar|the scent of a warm oven",
        use="the morning coffee|birthdays|a break at four o'clock|sharing, or for not sharing|"
        "a rainy afternoon|picnics and parties",
        who="children of all ages|people with a sweet tooth|early birds|coffee drinkers|"
        "guests who arrive hungry|the whole office",
        hook="Follow your nose.|Life is short, take a bite.|Fresh from the oven to you.|"
        "One more piece cannot hurt.|Breakfast just got better.|Treat yourself today.|"
        "The oven has been on since four.",
        detail="We bake twice a day and never keep anything overnight.|Come early, by noon the shelves are "
        "empty.|There is nothing in it that you could not name.|Warm it for a minute and the kitchen smells "
        "of home.|Our baker learned it from her mother and changed nothing.",
    ),
    "drinks": _family(
        (3, 40),
        "new trad hand cheap fine fresh sweet green",
        products="=coffee|=tea|=lemonade|=apple juice|=beer|=wine|=mint tea|=hot chocolate|=cider|"
        "smoothie/smoothies|=ginger beer|=orange juice|=green tea|=iced tea|=mineral water",
        made="beans roasted in small batches|hand-picked leaves|spring water and fresh fruit|"
        "apples from old trees|herbs from the hillside|grapes that ripened slowly",
        feat="a clean finish|a note of wild berries|a gentle bitterness|bubbles as fine as pearls|"
        "a scent of summer|a taste that stays|a touch of lemon|a round and mellow body",
        use="slow mornings|a hot afternoon|the end of a long week|toasting with friends|"
        "the break between two meetings|a quiet hour on the balcony",
        who="early risers|night workers|thirsty gardeners|people who take their time|curious tongues|good friends",
        hook="Pour yourself a pause.|Raise your glass.|Wake up to something good.|"
        "The first sip tells the truth.|Thirst is a fine thing.|Sit down, breathe, drink.|Refresh your day.",
        detail="Serve it cool in summer and warm in winter.|We add no colour and no tricks.|"
        "A single sip and you know where it comes from.|The bottle comes back to us and is filled again.|"
        "Our tasters argued for a week and agreed on this one.",
    ),
    "food": _family(
        (2, 35),
        "new trad cheap fine fresh sweet green small big",
        products="=honey|=cheese|apple/apples|tomato/tomatoes|=olive oil|+noodles|=jam|=soup|"
        "strawberry/strawberries|+mushrooms|pear/pears|=butter|potato/potatoes|sausage/sausages|"
        "orange/oranges|=rice|=pasta|olive/olives|cherry/cherries|pumpkin/pumpkins|=mustard|=peanut butter",
        made="the best of the harvest|nothing but what grows here|sun, soil and patience|small farms in the valley",
        feat="a taste like summer holidays|a deep and honest flavour|a scent that fills the kitchen|"
        "no additives at all|just the right bite|a hint of herbs|a colour that makes you hungry|"
        "plenty of goodness",
        use="a quick supper|the Sunday table|a healthy lunch box|breakfast in bed|long evenings with friends|"
        "cooking with children",
        who="hungry families|people who read labels|friends of simple food|hobby cooks|gourmets|busy students",
        hook="Taste the season.|Good food needs few words.|From the field to your fork.|Eat well, feel well.|"
        "Hungry? So are we.|Bring the market home.|Fill your plate with sunshine.",
        detail="Our farmers pick at dawn, and we deliver before noon.|Keep {them} in a cool place, if "
        "anything is left.|We know every farmer by name.|A little salt, a little pepper, and dinner is "
        "done.|Ask at the counter for a free taste.",
    ),
    "vehicles": _family(
        (180, 2400),
        "new old cheap fine colour bright light strong smart quiet green small",
        products="bicycle/bicycles|bike/bikes|scooter/scooters|car/cars|motorcycle/motorcycles|"
        "electric bike/electric bikes|cargo bike/cargo bikes|van/vans|skateboard/skateboards|"
        "tricycle/tricycles|boat/boats|canoe/canoes|camper/campers|folding bike/folding bikes",
        made="light steel|welded aluminium|carbon and care|parts you can buy anywhere",
        feat="brakes that bite gently|a frame that fits tall and small|lights that see around the bend|"
        "a seat you forget about|gears that change like butter|a basket for your shopping|a lock that holds|"
        "tyres that shrug off glass",
        use="the way to work|Sunday tours|narrow streets|carrying two children and a cake|"
        "long roads and short errands|seeing the sea before breakfast",
        who="commuters|families|adventurers|couriers|people who hate traffic jams|beginners and old hands",
        hook="Leave the traffic behind.|Feel the wind again.|The road is yours.|Get there with a smile.|"
        "Move freely.|Your town is smaller than you think.|Start rolling.",
        detail="A test ride is free and takes as long as you like.|The first service is on us.|"
        "Hills become flat and long ways become short.|Park it anywhere, it takes hardly any space.|"
        "Every part can be repaired with simple tools.",
    ),
    "electronics": _family(
        (30, 1200),
        "new old cheap fine colour bright light strong smart quiet green small",
        products="phone/phones|laptop/laptops|camera/cameras|computer/computers|tablet/tablets|"
        "printer/printers|television/televisions|keyboard/keyboards|robot/robots|drone/drones|"
        "vacuum cleaner/vacuum cleaners|washing machine/washing machines|alarm clock/alarm clocks|"
        "game console/game consoles|monitor/monitors|fridge/fridges|calculator/calculators",
        made="brushed aluminium|recycled plastic|glass and magnesium|parts that can be replaced",
        feat="a battery that lasts two days|a screen as clear as morning|a single button|"
        "menus you understand at once|sharp pictures even at night|updates for seven years|"
        "a fan you cannot hear|a cable that reaches",
        use="work and play|video calls with grandma|the long train ride|homework|small desks|evenings at home",
        who="people who hate manuals|students|makers|gamers|busy offices|beginners of every age",
        hook="Switch on the future.|Technology can be kind.|Press start.|Less waiting, more doing.|"
        "Smart is when it simply works.|Plug in and enjoy.|Meet your new favourite machine.",
        detail="It starts in three seconds and asks no questions.|Your data stays with you, where it "
        "belongs.|If something breaks, you change the part and not the machine.|"
        "Setting up takes less time than making tea.|Our help line is answered by people.",
    ),
    "music": _family(
        (25, 1500),
        "new old hand cheap fine colour bright light small",
        products="guitar/guitars|piano/pianos|violin/violins|+headphones|loudspeaker/loudspeakers|"
        "radio/radios|record player/record players|drum/drums|flute/flutes|trumpet/trumpets|"
        "accordion/accordions|ukulele/ukuleles|harmonica/harmonicas|microphone/microphones|"
        "music box/music boxes",
        made="spruce and maple|polished brass|rosewood|seasoned cherry wood|steel and velvet",
        feat="a warm and open tone|a voice that fills the room|bass you can feel|"
        "keys that answer to a breath|a sound as clear as a bell|tuning that holds for weeks|"
        "a case lined with velvet|a tone that grows with you",
        use="the first lesson|evenings by the fire|street corners and concert halls|"
        "practising without angry neighbours|a party in the kitchen|falling in love with old songs",
        who="beginners|buskers|music teachers|bands|shy singers|collectors of sounds",
        hook="Turn it up.|Let the room sing.|Every song starts with one note.|"
        "Hear what you have been missing.|Silence can wait.|Play it again.|Music is the shortest way home.",
        detail="The first three lessons are included.|Close your eyes and the band is in your room.|"
        "Our workshop tunes it before it leaves the house.|The more you play, the better it sounds.|"
        "Your neighbours may ask for more.",
    ),
    "books": _family(
        (4, 60),
        "new old hand cheap fine colour bright small big",
        products="book/books|notebook/notebooks|novel/novels|calendar/calendars|pencil/pencils|"
        "fountain pen/fountain pens|postcard/postcards|cookbook/cookbooks|map/maps|diary/diaries|"
        "atlas/atlases|comic/comics|poster/posters|picture book/picture books|magazine/magazines|"
        "=writing paper",
        made="cream-coloured paper|thread-sewn pages|linen and card|paper from managed forests|"
        "fine ink and thick paper",
        feat="pages that lie flat|a ribbon to mark your place|a cover you want to stroke|"
        "room for your thoughts|lines as sharp as a needle|pictures on every page|a smell of fresh print|"
        "corners that stay crisp",
        use="a train journey|the bedside table|letters that matter|rainy holidays|planning great things|"
        "reading aloud at bedtime",
        who="readers|people who still write letters|students|poets and list makers|curious children|night owls",
        hook="Open a door made of paper.|Turn the page.|Put it in writing.|Get lost for an hour.|"
        "Every great plan begins with a line.|Your next chapter starts here.|Read more, scroll less.",
        detail="It fits into a coat pocket and into a busy life.|No battery, no password, no noise.|"
        "A small gift that is kept for years.|The ink dries quickly and never shines through.|"
        "Begin on page one and see where it takes you.",
    ),
    "toys": _family(
        (6, 120),
        "new old hand cheap fine colour bright strong green small big",
        products="toy/toys|doll/dolls|teddy bear/teddy bears|puzzle/puzzles|kite/kites|ball/balls|"
        "board game/board games|toy train/toy trains|building block/building blocks|puppet/puppets|"
        "rocking horse/rocking horses|card game/card games|yo-yo/yo-yos|spinning top/spinning tops|"
        "dollhouse/dollhouses|chess set/chess sets",
        made="smooth maple wood|soft plush|thick card|safe and washable colours|wood from the region",
        feat="no sharp corners|rules you learn in two minutes|eyes full of mischief|a hundred ways to play|"
        "colours that stay bright|pieces for small hands|a box that tidies itself|a surprise inside",
        use="rainy Sundays|birthdays|the whole family|a quiet hour before bed|holidays at the sea|"
        "small hands and big ideas",
        who="children from three to ninety|curious kids|grandparents on duty|families|little engineers|"
        "big sisters and small brothers",
        hook="Play is the best teacher.|Let imagination run.|Ready, steady, play.|Switch off the screen.|"
        "Childhood comes only once.|Fun needs no batteries.|Somebody small is going to be very happy.",
        detail="It survives the sandbox, the bath and the little brother.|"
        "Nobody has to wait long for a turn.|Even the grown-ups will not want to stop.|"
        "It has been tested by a whole kindergarten.|When a part gets lost, we send another.",
    ),
    "garden": _family(
        (3, 150),
        "new old hand cheap fine colour bright strong green small big fresh",
        products="flower/flowers|rose/roses|tulip/tulips|flower pot/flower pots|watering can/watering cans|"
        "tree/trees|garden chair/garden chairs|plant/plants|seed/seeds|bird house/bird houses|"
        "lawn mower/lawn mowers|herb/herbs|greenhouse/greenhouses|cactus/cacti|garden hose/garden hoses|"
        "wheelbarrow/wheelbarrows",
        made="the best of our nursery|good earth and patience|weatherproof materials|things that like the rain",
        feat="blossom from May to October|roots as strong as a rope|a shape for every corner|"
        "no need for much care|a place for bees|a green that calms the eye|strength to survive the frost|"
        "a friendly look",
        use="balconies and wide lawns|the window sill|a shady corner|the first warm weekend|"
        "bees and butterflies|a garden that looks after itself",
        who="gardeners with little time|green thumbs|city dwellers|bees and their friends|"
        "beginners with a balcony|neighbours",
        hook="Let it grow.|Spring can begin.|Bring the outside in.|Get your hands dirty.|"
        "A garden is a long smile.|Paint your balcony green.|Water, wait, wonder.",
        detail="A little water in the evening is enough.|The birds will find it before the neighbours do.|"
        "Plant today and enjoy it for years.|Our gardeners answer every question by phone.|"
        "Even the shady side of the house comes alive.",
    ),
    "tools": _family(
        (5, 260),
        "new old hand cheap fine light strong smart quiet small big",
        products="hammer/hammers|saw/saws|drill/drills|ladder/ladders|screwdriver/screwdrivers|"
        "toolbox/toolboxes|axe/axes|paintbrush/paintbrushes|+scissors|+pliers|torch/torches|spade/spades|"
        "sewing machine/sewing machines|pocket knife/pocket knives|workbench/workbenches|"
        "tape measure/tape measures|needle/needles",
        made="forged steel|hardened chrome steel|steel from a small forge|honest materials",
        feat="a grip that does not tire|an edge that stays sharp|a balance that saves your wrist|"
        "marks you can read|a place on every wall|power where you need it|a spare part for everything|"
        "a ten-year promise",
        use="quick repairs|building your first shelf|the garden shed|big jobs and small fixes|"
        "work on a Saturday morning|mending what others throw away",
        who="craftsmen|weekend builders|people who fix things|set designers|careful parents|apprentices and masters",
        hook="Do it yourself, do it well.|Fix it before lunch.|Good work needs good tools.|"
        "Roll up your sleeves.|Half the job is the right tool.|Build something today.|"
        "Stop borrowing from your neighbour.",
        detail="It will outlive the shed you keep it in.|No wobble, no slip, no swearing.|"
        "Hang it on the wall and it is always at hand.|Your grandfather would have approved.|"
        "It does one job and it does that job perfectly.",
    ),
    "sport": _family(
        (8, 320),
        "new old cheap fine colour bright light strong small big",
        products="tent/tents|sleeping bag/sleeping bags|football/footballs|tennis racket/tennis rackets|"
        "+skis|yoga mat/yoga mats|water bottle/water bottles|surfboard/surfboards|+skates|helmet/helmets|"
        "compass/compasses|+swimming goggles|fishing rod/fishing rods|sledge/sledges|dumbbell/dumbbells|"
        "snowboard/snowboards|jump rope/jump ropes",
        made="light and tough materials|stuff that mountain guides trust|materials that forgive a fall|"
        "things that do not mind the weather",
        feat="a shape tested in the wind|straps you can close with gloves|a surface that never slips|"
        "a weight you hardly notice|seams that keep out the rain|a bounce you can trust|"
        "a colour you find in the snow|plenty of spring",
        use="the lake and the mountain|training after work|a night under the stars|winter holidays|"
        "the first try|the park on Sunday mornings",
        who="beginners|early runners|scouts|weekend athletes|school teams|people who love the outdoors",
        hook="Get off the sofa.|Fresh air is free.|Find your second wind.|Go where the path ends.|"
        "Move, sweat, smile.|The mountain is calling.|Your next record is waiting.",
        detail="Pack it in a minute, carry it all day.|It has been tried out on three glaciers and one wet "
        "playground.|You will want to be outside, whatever the sky says.|"
        "The team at the counter plays too and gives good advice.|Rent it for a weekend first, if you like.",
    ),
    "jewels": _family(
        (30, 950),
        "new old hand cheap fine colour bright light small",
        products="watch/watches|ring/rings|necklace/necklaces|earring/earrings|bracelet/bracelets|"
        "brooch/brooches|pocket watch/pocket watches|pendant/pendants|+glasses|+sunglasses|"
        "wall clock/wall clocks|gold chain/gold chains|pearl/pearls|wedding ring/wedding rings",
        made="brushed silver|recycled gold|white enamel|tiny freshwater shells|polished titanium",
        feat="a clasp that closes with a soft click|a sparkle that is never loud|"
        "an engraving of your choice|lines from another age|a case of dark blue velvet|"
        "a light that catches the eye|a secret on the inside|a certificate of origin",
        use="a promise|golden anniversaries|evenings at the theatre|every single day|saying thank you|"
        "a very special birthday",
        who="lovers|daughters and mothers|collectors|people who are always on time|brides and grooms|quiet admirers",
        hook="Some moments shine longer.|Give time, give light.|Say it without words.|Make the moment last.|"
        "A small sparkle goes a long way.|She will know at once.|Wear a little sunshine.",
        detail="Our goldsmith signs each piece with a tiny star.|It comes in a box you will want to keep.|"
        "It is light on the skin and never leaves a mark.|We clean and polish it for free, every year.|"
        "One day somebody will inherit it.",
    ),
    "bedding": _family(
        (12, 260),
        "new old hand cheap fine colour bright light warm green big",
        products="blanket/blankets|pillow/pillows|carpet/carpets|curtain/curtains|towel/towels|quilt/quilts|"
        "rug/rugs|cushion/cushions|tablecloth/tablecloths|bathrobe/bathrobes|duvet/duvets|=bed linen|"
        "doormat/doormats",
        made="combed cotton|soft lambswool|alpaca wool|washed linen|felted wool|bamboo and cotton",
        feat="a border sewn by hand|a softness you sink into|colours from the garden|a weave that breathes|"
        "a pattern from the north|corners that stay put|the smell of clean air|a weight that calms",
        use="long winter nights|the guest room|bare feet in the morning|an afternoon on the sofa|warm baths|"
        "a good night's sleep",
        who="late sleepers|people with cold feet|cats and their owners|newlyweds|guests|dreamers",
        hook="Sleep like a stone.|Soft is a good place to land.|Good night starts here.|"
        "Come in from the cold.|Stay in bed a little longer.|Wrap yourself in calm.|"
        "Home is where it is soft.",
        detail="Shake {them} out in the morning, and the room looks made.|"
        "Every wash makes the fabric kinder.|The cat will claim it first.|"
        "Dust finds no place in the tight weave.|You will sleep through the alarm, so set two.",
    ),
    "pets": _family(
        (4, 120),
        "new hand cheap fine colour bright strong green small big",
        products="dog bed/dog beds|cat toy/cat toys|=dog food|=cat food|dog collar/dog collars|"
        "aquarium/aquariums|bird cage/bird cages|saddle/saddles|dog leash/dog leashes|"
        "scratching post/scratching posts|=bird seed|cat basket/cat baskets|hamster wheel/hamster wheels|"
        "feeding bowl/feeding bowls",
        made="things no paw can break|natural ingredients|untreated wood and rope|washable felt|strong webbing",
        feat="an approval by a very picky cat|no nasty extras|a size for every paw|a colour that hides hair|"
        "plenty of room to turn around|edges that are safe to chew|a calm smell of hay|a good deal of love",
        use="playful mornings|old bones|long naps|walks in the dark|the four-legged boss|furry friends of every size",
        who="dogs and their humans|cats who know what they want|shy rescues|puppies|proud owners|animal lovers",
        hook="Happy tails guaranteed.|They cannot say it, but they know.|Spoil your best friend.|"
        "For the one who waits at the door.|Purring is the best review.|Good dogs deserve good things.|"
        "Wag now, thank us later.",
        detail="Our vets had a look and nodded.|Wash it, dry it, and it is ready for the next adventure.|"
        "If your animal turns away, you get your money back.|It lasts longer than any slipper in the house.|"
        "Three out of three dachshunds fell asleep at once.",
    ),
    "care": _family(
        (3, 70),
        "new old hand cheap fine fresh green small",
        products="=soap|=shampoo|=perfume|=hand cream|toothbrush/toothbrushes|comb/combs|=bath salt|"
        "=lip balm|razor/razors|hairbrush/hairbrushes|=sun cream|=body oil|=toothpaste|=shaving foam",
        made="olive oil and lavender|almond milk|sea salt and herbs|beeswax and roses|plants from our own fields",
        feat="a scent of fresh laundry|a foam as light as snow|no perfume that shouts|a touch of lemon|"
        "a feeling of clean air|kindness to dry skin|a note of orange blossom|nothing that stings the eyes",
        use="tired skin|the morning rush|a long bath|cold winter days|sensitive hands|travelling light",
        who="people with dry hands|bathers|sleepy heads|the whole family|friends of clear ingredients|swimmers",
        hook="Be kind to your skin.|Start fresh.|A small luxury every morning.|"
        "Take ten minutes for yourself.|Clean can smell like a holiday.|Feel new again.|"
        "Your mirror will smile back.",
        detail="A little goes a very long way.|We never test on animals and never will.|"
        "Your bathroom will smell like a garden after rain.|It leaves no film, only softness.|"
        "Refill it at the shop and save the bottle.",
    ),
}

#: What an adjective means for a product, and the sentences that follow from it.
SENSES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "new": (
        _split("new|brand-new|modern|latest|redesigned|improved"),
        _split(
            "{This} {is} fresh from the workshop and ready for you.|Nobody else in your street has {a} yet.|"
            "We spent two years on the drawing board, and it shows.|Forget the last model, {this} change{s} "
            "the rules.|We kept what was good and made the rest better.|"
            "{This} arrived on Monday, and the first box is already gone.|"
            "You have not seen {a} like this before.|Be the first to try {this}.|"
            "Out with the old, in with {a}."
        ),
    ),
    "old": (
        _split("old|vintage|antique|classic|traditional|old-fashioned|second-hand|timeless"),
        _split(
            "{This} {has} a story to tell.|They do not make {n} like this any more.|"
            "Time has only made {them} better.|{This} {has} seen three generations and {is} ready for a "
            "fourth.|We found {them} in an attic and fell in love.|Every mark is a memory, and there is room "
            "for yours.|{This} remind{s} us how good things used to be.|Fashion passes, {an} stay{z}.|"
            "What was good for our grandparents is good enough for us."
        ),
    ),
    "trad": (
        _split("classic|traditional|old-fashioned|rustic|famous"),
        _split(
            "The recipe has not changed since {year}, and neither has the joy.|"
            "{This} taste{s} the way you remember.|What was good for our grandparents is good enough for us.|"
            "Fashion passes, {an} stay{z}.|Grandmother would ask for more of {this}.|"
            "Some things should never change, and {this} {is} one of them."
        ),
    ),
    "hand": (
        _split("handmade|hand-crafted|homemade|artisan|custom-made|one-of-a-kind"),
        _split(
            "{This} {is} made by hand, one at a time.|Two hands, one table and no hurry: that is how we "
            "work.|No machine has ever touched {this}.|You can feel the hours of work in {this}.|"
            "Each piece is a little different, just like you.|Our small workshop makes only {few} a week.|"
            "The maker signs {this} with pride.|Behind {this} stand{z} a person and not a factory."
        ),
    ),
    "cheap": (
        _split("cheap|affordable|discounted|low-cost|bargain|half-price"),
        _split(
            "{This} cost{s} less than a dinner for two.|A small price, a big smile.|"
            "Good {n} need not be expensive.|We save on the wrapping and not on the {n}.|"
            "Keep your money and still get {a}.|Why pay more for the same {n}?|"
            "{This} {is} easy on the purse.|Buy two, and you still have money for lunch."
        ),
    ),
    "fine": (
        _split("elegant|fine|luxury|premium|exclusive|beautiful|noble|stylish|exquisite|charming"),
        _split(
            "{This} turn{s} an ordinary day into an occasion.|Elegance is a matter of details, and {this} "
            "{has} them all.|{This} {is} for those who look twice.|You will not need to explain why you "
            "chose {a}.|Beauty like this is rare, and so {is} {an}.|{This} speak{s} of quiet good taste.|"
            "Only the best leaves our house, and {this} {is} the proof.|"
            "Once you own {a}, there is no way back."
        ),
    ),
    "colour": (
        _split("red|blue|green|yellow|white|black|pink|purple|orange|silver|golden|brown|turquoise"),
        _split(
            "The {adj} colour makes every day a little brighter.|{This} will be seen from the other side of "
            "the street.|{Adj} is the colour of the season.|We mixed nineteen shades before we found this "
            "{adj}.|Not just any {n}, but {an}.|The {adj} does not fade, not in the sun and not in the rain.|"
            "Grey days need {a}.|A touch of {adj} goes with everything."
        ),
    ),
    "bright": (
        _split("colourful|bright|striped|flowery|cheerful"),
        _split(
            "{This} make{s} every day a little brighter.|{This} will be seen from the other side of the "
            "street.|Grey days need {a}.|Nobody can look at {this} without a smile.|"
            "Plain is for other people, you want {a}.|We let our youngest designer loose, and out came "
            "{this}."
        ),
    ),
    "light": (
        _split("light|lightweight|compact|slim|portable|foldable"),
        _split(
            "{This} weigh{s} next to nothing.|You will forget that you are carrying {them}.|"
            "{This} fit{s} where nothing else does.|Take {a} with you wherever you go.|"
            "Less weight, more freedom.|We left out everything that was too much, and {this} {is} what "
            "stayed."
        ),
    ),
    "strong": (
        _split("strong|sturdy|tough|durable|solid|robust|unbreakable|waterproof"),
        _split(
            "{This} will last longer than any promise.|Drop {them}, soak {them}, use {them} every day.|"
            "We jumped on {this}, and nothing happened.|{This} {is} built for real life.|"
            "Buy {a} once and never again.|Storms, children and bad luck: {this} take{s} it all."
        ),
    ),
    "warm": (
        _split("warm|cosy|soft|comfortable|fluffy|woollen"),
        _split(
            "{This} feel{s} like a hug from an old friend.|Let it snow, you have {a}.|"
            "Winter looks better with {a}.|So soft that you will never want to part with {them}.|"
            "{This} keep{s} the cold where it belongs, outside.|Comfort has a name, and it is {an}."
        ),
    ),
    "green": (
        _split("organic|sustainable|natural|recycled|eco-friendly|fair-trade|local"),
        _split(
            "{This} {is} good for you and good for the planet.|We plant a tree whenever somebody buys {a}.|"
            "No plastic, no poison, no regrets.|The people who make {this} are paid fairly.|"
            "{This} come{s} from around the corner and not from around the world.|"
            "Nature had the idea, and we made {a} of it."
        ),
    ),
    "smart": (
        _split("smart|clever|fast|powerful|innovative|wireless|electric"),
        _split(
            "{This} think{s} ahead so that you can look around.|Fast, simple, reliable: {this} {is} all of "
            "that.|{This} learn{s} what you like and never tell{s} anyone.|More power, fewer buttons.|"
            "You blink, and the job is done by {this}.|Our engineers are a little proud of {this}."
        ),
    ),
    "quiet": (
        _split("quiet|silent|gentle|whisper-quiet"),
        _split(
            "{This} make{s} less noise than a sleeping cat.|The baby sleeps on while {this} work{s}.|"
            "Hear the birds again, thanks to {this}.|Peace and quiet now come as standard.|"
            "So quiet that you have to look whether {it} {is} running."
        ),
    ),
    "fresh": (
        _split("fresh|crisp|juicy|seasonal|tasty|delicious"),
        _split(
            "{This} came in this morning.|You cannot get {n} any fresher than this.|"
            "From dawn to your table, {an} wait{z} for nobody.|One taste of {this} and the day is saved.|"
            "{This} smell{s} as good as a summer market.|Yesterday is too old for us, and {this} prove{s} it."
        ),
    ),
    "sweet": (
        _split("sweet|spicy|creamy|rich|crunchy|golden-brown"),
        _split(
            "{This} melt{s} away before you can share.|There is always room for {an}.|"
            "One bite of {this}, and the world is kind again.|Our secret recipe for {an} fits on a stamp.|"
            "Your tongue will remember {this}.|Nobody has ever left {an} on the plate."
        ),
    ),
    "small": (
        _split("small|tiny|mini|little|pocket-sized"),
        _split(
            "Good things come in small boxes, and {this} {is} no exception.|"
            "{This} take{s} up hardly any room.|Small in size, big in charm: meet {our}.|"
            "Even the smallest corner has a place for {a}.|Do not be fooled by the size of {this}."
        ),
    ),
    "big": (
        _split("big|large|huge|giant|extra-large|family-sized"),
        _split(
            "{This} {is} big enough for everybody.|Think big, choose {a}.|"
            "You asked for more, so here {is} {a}.|Nobody goes away empty-handed with {this}.|"
            "{This} will not be overlooked.|More of a good thing: {a}."
        ),
    ),
}

AD_OPEN = _split(
    "Meet {our}.|Say hello to {our}.|Here {is} {our}.|Looking for {a}?|Have you been dreaming of {a}?|"
    "Do you need {a}?|{Our} {is} here.|At last, {a} for {who}.|It is time for {a}.|You deserve {a}.|"
    "Nothing beats {a}.|What would {season} be without {a}?|Discover {our} today.|"
    "Ask {who} about {our} and watch them smile."
)
AD_PLAIN = _split(
    "{This} do{es} what good {n} should do.|We have been making {n} since {year}.|"
    "Nobody knows more about {n} than we do.|{This} will soon feel like part of the family.|"
    "We make {n} the way we would want them for ourselves.|Life is too short for bad {n}.|"
    "There {is} {n}, and there {is} our {n}.|Ask around: our {n} {is} the talk of the town."
)
AD_FEAT = _split(
    "Made of {made}, with {feat}.|{This} {is} made of {made}, with {feat} and {feat2}.|"
    "Expect {feat} and {feat2}.|You get {feat}, {feat2} and {feat3}.|We use {made} and nothing else.|"
    "{Our} come{s} with {feat}.|With {feat}, {this} make{s} all the difference.|"
    "{Cap_feat}: it is the details that count.|What makes {our} special? It is {made}, and {feat}.|"
    "Look closely and you will find {feat}.|Thanks to {made}, {our} will please you for years.|"
    "The secret of our {n} is {made}."
)
AD_USE = _split(
    "{This} {is} just right for {use}.|Perfect for {use} and for {use2}.|Made for {who} and for {use}.|"
    "{Cap_who} love {this}.|{This} {is} the choice of {who}.|Whether for {use} or for {use2}, you are ready.|"
    "A lovely gift for {who}.|{Cap_who} will never want to miss {our} again.|"
    "For {use}, there is nothing better than {our}.|We had {who} in mind, and {use} as well.|"
    "Take {them} along for {use}."
)
AD_CLOSE = _split(
    "This week only {price} euros instead of {before}.|Order before {day} and we pay the postage.|"
    "Come and see {our} at {street}.|Now from {price} euros.|Only while stocks last.|Get {yours} today.|"
    "Try {them} for thirty days, and send {them} back if you change your mind.|"
    "Visit our shop on {street} and see for yourself.|Open daily from {hour} in the morning until {evening} "
    "in the evening.|Guaranteed for {count} years.|Bring a friend and save {percent} per cent.|"
    "Order online tonight, enjoy {them} on {day}.|Two for the price of one until {day}.|"
    "Call us, we like to talk about {n}.|Do not wait until {month}.|"
    "{Our}: you will wonder how you lived without {them}.|Starting at {price} euros, and worth every cent.|"
    "Now at {street}, next to the {landmark}.|Half of the first batch is gone, so be quick.|"
    "Your {n} {is} waiting."
)

# ----------------------------------------------------------------------------------------------------- places

PLACES = _split(
    "Lisbon|Oslo|Paris|London|Berlin|Madrid|Rome|Vienna|Prague|Warsaw|Budapest|Athens|Dublin|Helsinki|"
    "Stockholm|Copenhagen|Brussels|Amsterdam|Zurich|Geneva|Bern|Basel|Munich|Hamburg|Cologne|Frankfurt|"
    "Stuttgart|Leipzig|Dresden|Bremen|Hanover|Nuremberg|Kassel|Freiburg|Mainz|Kiel|Rostock|Salzburg|Graz|"
    "Linz|Innsbruck|Milan|Turin|Naples|Venice|Florence|Bologna|Genoa|Verona|Palermo|Bari|Pisa|Trieste|"
    "Barcelona|Valencia|Seville|Malaga|Bilbao|Granada|Zaragoza|Toledo|Porto|Coimbra|Braga|Faro|Lyon|"
    "Marseille|Nice|Toulouse|Bordeaux|Nantes|Lille|Strasbourg|Rennes|Dijon|Grenoble|Avignon|Antwerp|Ghent|"
    "Bruges|Liege|Rotterdam|Utrecht|The Hague|Groningen|Delft|Leiden|Aarhus|Odense|Gothenburg|Malmo|Uppsala|"
    "Bergen|Trondheim|Stavanger|Tromso|Turku|Tampere|Oulu|Reykjavik|Tallinn|Tartu|Riga|Vilnius|Kaunas|Krakow|"
    "Gdansk|Wroclaw|Poznan|Lodz|Brno|Ostrava|Bratislava|Kosice|Ljubljana|Maribor|Zagreb|Split|Dubrovnik|"
    "Rijeka|Sarajevo|Mostar|Belgrade|Novi Sad|Skopje|Ohrid|Tirana|Sofia|Plovdiv|Varna|Bucharest|Cluj|Brasov|"
    "Sibiu|Chisinau|Kyiv|Lviv|Odesa|Istanbul|Ankara|Izmir|Antalya|Thessaloniki|Patras|Nicosia|Valletta|"
    "Edinburgh|Glasgow|Aberdeen|Dundee|Inverness|Cardiff|Swansea|Belfast|Derry|Cork|Galway|Limerick|"
    "Manchester|Liverpool|Leeds|Sheffield|York|Bristol|Bath|Oxford|Cambridge|Norwich|Brighton|Plymouth|"
    "Exeter|Newcastle|Durham|Nottingham|Leicester|Coventry|Birmingham|Southampton|New York|Boston|Chicago|"
    "Seattle|Portland|Denver|Austin|Dallas|Houston|Miami|Atlanta|Detroit|Cleveland|Pittsburgh|Philadelphia|"
    "Baltimore|Washington|Nashville|Memphis|New Orleans|Phoenix|Tucson|San Diego|San Francisco|Los Angeles|"
    "Sacramento|Las Vegas|Salt Lake City|Minneapolis|Milwaukee|Omaha|Honolulu|Anchorage|Toronto|Montreal|"
    "Ottawa|Quebec|Vancouver|Calgary|Winnipeg|Halifax|Mexico City|Guadalajara|Puebla|Havana|Kingston|"
    "Panama City|San Jose|Bogota|Medellin|Quito|Lima|Cusco|La Paz|Santiago|Valparaiso|Buenos Aires|Cordoba|"
    "Mendoza|Montevideo|Asuncion|Sao Paulo|Rio de Janeiro|Salvador|Recife|Brasilia|Curitiba|Cairo|Alexandria|"
    "Tunis|Algiers|Rabat|Fez|Casablanca|Marrakesh|Dakar|Accra|Lagos|Abuja|Nairobi|Mombasa|Kampala|Kigali|"
    "Addis Ababa|Lusaka|Harare|Maputo|Windhoek|Gaborone|Cape Town|Durban|Johannesburg|Pretoria|Antananarivo|"
    "Beirut|Amman|Jerusalem|Haifa|Tel Aviv|Doha|Dubai|Muscat|Tehran|Isfahan|Baku|Tbilisi|Yerevan|Tashkent|"
    "Samarkand|Almaty|Bishkek|Kathmandu|Delhi|Mumbai|Kolkata|Chennai|Bangalore|Jaipur|Pune|Hyderabad|Colombo|"
    "Dhaka|Yangon|Bangkok|Chiang Mai|Hanoi|Hue|Phnom Penh|Vientiane|Singapore|Kuala Lumpur|Penang|Jakarta|"
    "Bandung|Manila|Cebu|Taipei|Hong Kong|Macau|Shanghai|Beijing|Nanjing|Chengdu|Xiamen|Harbin|Seoul|Busan|"
    "Tokyo|Kyoto|Osaka|Nagoya|Sapporo|Fukuoka|Kobe|Hiroshima|Ulaanbaatar|Sydney|Melbourne|Brisbane|Perth|"
    "Adelaide|Hobart|Darwin|Canberra|Auckland|Wellington|Christchurch|Dunedin|Suva|Nuuk|Weimar|Jena|Potsdam|"
    "Bonn|Aachen|Trier|Lucerne|Lausanne|Lugano|Chur|Bregenz|Bolzano|Trento|Siena|Lucca"
)
_HEADS = _split(
    "Ash|Bram|Bel|Corn|Dun|El|Fal|Glen|Har|Kel|Lang|Mar|Nor|Oak|Pen|Quin|Ros|Stan|Thorn|Ul|Vel|West|Wil|Yar|"
    "Zel|Ard|Bir|Cal|Dor|Esk|Fen|Gar|Hol|Ing|Jar|Kal|Lor|Mon|Nel|Or|Pol|Rav|Sel|Tor|Um|Var|Win|Al|Bor|Cas|"
    "Dal|Er|Fro|Gal|Hed|Is|Kin|Lin"
)
_TAILS = _split(
    "ford|ton|by|haven|mouth|wick|field|bury|stad|berg|holm|dorf|ville|mar|ona|ava|ino|eta|esk|ov|ling|more|"
    "dale|wood|burn|ham|bridge|port|low|grove|anza|ira|ura|enna|olo|ester|minster|combe|stead|vik|nes|sund"
)


@cache
def held_out_places() -> tuple[str, ...]:
    """The real places that no text for training names, the same on every machine."""
    return tuple(sorted(sorted(PLACES, key=_digest)[:HELD_OUT_PLACES]))


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def pair_is_held_out(adjective: str, noun: str) -> bool:
    """Whether ads for this adjective and this product (its singular, if it has one) are held out."""
    return bool(adjective) and _digest(f"{adjective} {noun}") % HELD_OUT_PAIRS_IN == 0


# ---------------------------------------------------------------------------------------------------- weather


@dataclass(frozen=True)
class Sky:
    """One kind of weather: its sentences, the temperatures and winds that go with it, and what may follow."""

    now: tuple[str, ...]
    later: tuple[str, ...]
    advice: tuple[str, ...]
    degrees: tuple[int, int]
    wind: tuple[str, ...]
    rain: tuple[int, int]
    follows: tuple[str, ...]


def _sky(degrees: tuple[int, int], rain: tuple[int, int], wind: str, *sentences: str) -> Sky:
    now, later, advice, follows = map(_split, sentences)
    return Sky(now, later, advice, degrees, _split(wind), rain, follows)


_CALM = "hardly any wind|a light breeze from the {compass}|calm air|a gentle breeze from the {compass}"
_FRESH = "a fresh wind from the {compass}|a steady wind from the {compass}|gusts of up to {gust} kilometres per hour"

SKIES: dict[str, Sky] = {
    "sun": _sky(
        (17, 29),
        (0, 5),
        _CALM,
        "It is a sunny day in {place}, with a clear blue sky.|Bright sunshine fills the streets of {place} "
        "this {part}.|The sun is shining over {place}, and there is hardly a cloud to be seen.|"
        "{place} wakes up to clear skies and warm light.|Plenty of sun is expected in {place} all day long.|"
        "A fine day lies ahead for {place}, dry and bright.",
        "The {part2} stays dry and clear.|A few harmless clouds may drift in by {part2}.|"
        "The sun sets behind a clear horizon.|The night will be mild and full of stars.|"
        "Visibility is excellent, and the hills can be seen from far away.",
        "Do not forget your sun cream.|A good day for the park.|Sunglasses will be useful.|"
        "Drink enough water if you are outside.|Open the windows and enjoy it.|"
        "A picnic in {place} would be a fine idea.",
        "Tomorrow will be just as bright.|Tomorrow brings a few more clouds, but no rain.|"
        "The fine weather holds until {day}.|From {day} on, it turns a little cooler.",
    ),
    "heat": _sky(
        (31, 39),
        (0, 3),
        "hardly any wind|a hot wind from the south|still air",
        "A heat wave has {place} in its grip.|It is hot in {place}, and the air shimmers above the roads.|"
        "{place} is sweating under a merciless sun.|Very high temperatures are expected in {place} today.|"
        "The hottest day of the year so far has arrived in {place}.",
        "Even after sunset, it hardly cools down.|The night stays warm, with no less than {low} degrees.|"
        "Shade is hard to find at noon.|In the old town, the stones stay warm until midnight.",
        "Drink plenty of water and stay in the shade.|Please look after older neighbours.|"
        "Leave heavy work for the evening.|The public pools of {place} are open until late.|"
        "Keep the shutters closed during the day.",
        "Relief is not in sight before {day}.|Thunderstorms may end the heat on {day}.|"
        "Tomorrow will be hot again.|A cooler wind is expected by {day}.",
    ),
    "cloud": _sky(
        (9, 19),
        (5, 25),
        _CALM,
        "Grey clouds hang over {place} today.|The sky over {place} is overcast, but it stays mostly dry.|"
        "It is a cloudy day in {place}, with little sun.|Thick clouds cover {place} this {part}.|"
        "The sun hides behind a grey blanket above {place}.|{place} starts the day under a dull sky.",
        "Now and then the sun looks through.|In the {part2} the clouds break up a little.|"
        "A drop of rain cannot be ruled out.|It remains grey until the evening.|"
        "The night is cloudy and mild.",
        "A light jacket will do.|Take a sweater if you stay out late.|A good day for a museum.|"
        "The umbrella may stay at home.|A quiet day for a walk through {place}.",
        "Tomorrow it brightens up.|Tomorrow stays grey.|Rain arrives on {day}.|The sun returns on {day}.",
    ),
    "rain": _sky(
        (6, 17),
        (60, 95),
        _FRESH,
        "It is raining in {place}, and the streets are wet.|Steady rain falls on {place} this {part}.|"
        "Umbrellas are up all over {place}.|A band of rain is crossing {place} from the {compass2}.|"
        "Expect showers in {place}, some of them heavy.|{place} is in for a wet day.|"
        "Rain clouds have settled above {place}.",
        "Up to {mm} millimetres of rain may fall by the evening.|Between the showers it stays dry for an "
        "hour or two.|In the {part2} the rain becomes lighter.|Puddles will form on low roads.|"
        "The rain eases during the night.",
        "Take an umbrella with you.|Wear good shoes, the ground is soaked.|Drive slowly on wet roads.|"
        "A day for tea and a good book.|Cyclists in {place} should wear a raincoat.",
        "Tomorrow it stays wet.|It dries up on {day}.|Tomorrow brings sun and a few last showers.|"
        "The rain moves away by {day}.",
    ),
    "storm": _sky(
        (8, 24),
        (70, 100),
        "gusts of up to {gale} kilometres per hour|a stormy wind from the {compass}|sudden squalls from the {compass}",
        "A thunderstorm is moving towards {place}.|Lightning and heavy rain are expected in {place} this "
        "{part}.|Storm warning for {place}: strong gusts are on their way.|"
        "Dark clouds are towering over {place}.|The wind is howling around the houses of {place}.",
        "Hail is possible in some districts.|Branches may fall in parks and along the river.|"
        "The worst will be over by {part2}.|The storm passes through within two hours.|"
        "Ferries and cable cars may be delayed.",
        "Stay indoors if you can.|Keep away from tall trees.|Bring in your flower pots.|"
        "Close all windows before you leave.|The parks of {place} remain closed until further notice.",
        "Tomorrow the air is clear and fresh.|Calmer weather returns on {day}.|"
        "More storms may follow on {day}.|Tomorrow stays windy, but dry.",
    ),
    "snow": _sky(
        (-9, 1),
        (50, 95),
        "a cold wind from the north|hardly any wind|an icy breeze from the east|a light wind from the {compass}",
        "Snow is falling on {place}, and the roofs are white.|{place} wakes up under a blanket of snow.|"
        "Thick flakes drift through the streets of {place}.|Fresh snow is expected in {place} this {part}.|"
        "Winter has arrived in {place}, with up to {cm} centimetres of snow.|It is snowing in {place}.",
        "Up to {cm} centimetres of fresh snow may fall by the {part2}.|Roads and pavements can be slippery.|"
        "Buses run late, but they run.|The snow stops during the night.|"
        "After dark the frost becomes sharper.",
        "Wear warm boots and a thick scarf.|Allow more time for your journey.|"
        "Clear the pavement in front of your door.|Children in {place} are getting out their sledges.|"
        "Hot chocolate is a good idea.",
        "Tomorrow it snows again.|Tomorrow the sun comes out above the snow.|It becomes milder on {day}.|"
        "The snow stays at least until {day}.",
    ),
    "frost": _sky(
        (-14, 2),
        (0, 10),
        "hardly any wind|an icy wind from the east|a biting wind from the north|still air",
        "It is bitterly cold in {place}, under a clear sky.|A sharp frost has covered {place} with white "
        "crystals.|Clear and icy: that is the outlook for {place}.|The lakes around {place} are freezing "
        "over.|A cold and sunny winter day awaits {place}.",
        "In the shade it stays below zero all day.|Ice on the roads is likely in the {part2}.|"
        "The night will be clear, with {low} degrees at dawn.|The sun shines, but it has no strength.",
        "Wear gloves and a hat.|Scrape your windscreen in good time.|Watch your step on bridges and stairs.|"
        "Leave some seed for the birds.|Do not walk on the ice of the ponds in {place} yet.",
        "Tomorrow stays just as cold.|Snow may follow on {day}.|Milder air arrives on {day}.|"
        "The frost holds until {day}.",
    ),
    "fog": _sky(
        (1, 12),
        (5, 20),
        "still air|hardly any wind|calm air",
        "Dense fog lies over {place} this morning.|{place} has vanished in a white mist.|"
        "A foggy start to the day in {place}.|Thick fog covers the river and the old town of {place}.|"
        "You can hardly see across the street in {place}.",
        "Visibility is below {metres} metres.|The fog lifts slowly towards noon.|"
        "Above the mist, the hills lie in the sun.|In the valleys it stays grey all day.|"
        "Flights may be delayed this morning.",
        "Switch on your lights and drive slowly.|Wear something bright.|Take the train if you can.|"
        "A scarf keeps out the damp.|Listen for bicycles in the lanes of {place}.",
        "Tomorrow starts with fog again.|A fresh wind clears the air on {day}.|The sun wins on {day}.|"
        "Tomorrow is brighter.",
    ),
    "wind": _sky(
        (5, 18),
        (10, 40),
        _FRESH,
        "It is a windy day in {place}, with fast clouds.|A strong breeze sweeps through {place} this {part}.|"
        "Hold on to your hat in {place} today.|Sun and clouds take turns above {place}, driven by the wind.|"
        "The flags of {place} are flying straight out.",
        "The wind drops in the {part2}.|Along the waterfront it feels much colder.|"
        "A short shower may pass through.|By night it becomes calmer.|"
        "The clouds race by, and the light changes every minute.",
        "Perfect weather for kites.|Cyclists should watch out for gusts.|"
        "Wear a jacket that keeps out the wind.|Tie down whatever may fly away.|"
        "Washing dries in no time in {place}.",
        "Tomorrow the wind eases.|It stays windy until {day}.|Rain follows on {day}.|Tomorrow is calm and friendly.",
    ),
    "change": _sky(
        (8, 20),
        (30, 60),
        _CALM + "|" + _FRESH,
        "Sun and showers take turns in {place} today.|The weather in {place} cannot make up its mind.|"
        "Changeable weather is on the way to {place}.|{place} gets a bit of everything: sun, clouds and a "
        "shower.|A mixed day lies ahead for {place}.",
        "A rainbow is quite possible.|In the {part2} the sunny spells become longer.|"
        "Showers are short, but they can be heavy.|By evening it dries up.|"
        "The sky looks different every hour.",
        "Pack sunglasses and an umbrella.|Dress in layers.|Plan your walk through {place} between two "
        "showers.|Keep an eye on the sky.|Do not trust the first ray of sun.",
        "Tomorrow is more settled.|Tomorrow stays changeable.|From {day} on it gets warmer.|"
        "High pressure builds up by {day}.",
    ),
}

#: Places that get no snow and no frost; the invented ones get everything.
WARM_PLACES = frozenset(
    _split(
        "Lisbon|Seville|Malaga|Faro|Valletta|Nicosia|Miami|Honolulu|New Orleans|Havana|Kingston|Panama City|"
        "San Jose|Lima|Recife|Rio de Janeiro|Salvador|Sao Paulo|Cairo|Alexandria|Tunis|Casablanca|Dakar|"
        "Accra|Lagos|Abuja|Nairobi|Mombasa|Kampala|Kigali|Lusaka|Harare|Maputo|Windhoek|Gaborone|Cape Town|"
        "Durban|Antananarivo|Tel Aviv|Doha|Dubai|Muscat|Mumbai|Kolkata|Chennai|Bangalore|Jaipur|Pune|"
        "Hyderabad|Colombo|Dhaka|Yangon|Bangkok|Chiang Mai|Hanoi|Hue|Phnom Penh|Vientiane|Singapore|"
        "Kuala Lumpur|Penang|Jakarta|Bandung|Manila|Cebu|Taipei|Hong Kong|Macau|Sydney|Brisbane|Perth|Darwin|"
        "Suva|Los Angeles|San Diego|Antalya|Medellin|Guadalajara|Xiamen"
    )
)

WEATHER_NUMBERS = _split(
    "The temperature reaches {high} degrees.|Highs of {high} degrees, lows of {low}, and {wind}.|"
    "It is {high} degrees, with {wind}.|Temperatures lie between {low} and {high} degrees.|"
    "The thermometer shows {high} degrees at noon and {low} at night.|"
    "There is {wind}, and the chance of rain is {rain} per cent.|With {wind}, it feels like {felt} degrees.|"
    "{place} can expect {high} degrees in the afternoon.|The chance of rain is {rain} per cent, the high "
    "{high} degrees."
)

# ------------------------------------------------------------------------------------------------------- news


@dataclass(frozen=True)
class Story:
    """One kind of news: who speaks, and what can be told."""

    role: tuple[str, ...]
    lead: tuple[str, ...]
    more: tuple[str, ...]
    quote: tuple[str, ...]


def _story(role: str, lead: str, more: str, quote: str) -> Story:
    return Story(_split(role), _split(lead), _split(more), _split(quote))


STORIES: tuple[Story, ...] = (
    _story(
        "mayor|city planner|engineer|head of the building office",
        "A new bridge across the river has opened in {place}.|After {count} years of work, the old "
        "bridge of {place} is open again.|{place} will build a footbridge between the station and the "
        "{landmark}.",
        "It is {metres} metres long and carries pedestrians, bicycles and trams.|"
        "The work cost {million} million euros.|Thousands of people walked across on the first day.|"
        "Cars have to take the way along {street}.|The steel was made in the region.",
        "The two halves of our town have come closer|A bridge is a promise|"
        "We have waited a long time for this day|It came in under budget, which surprised even me",
    ),
    _story(
        "transport manager|mayor|spokeswoman of the tram company|bus driver",
        "Night buses will run in {place} from {month} on.|The trams of {place} will be free on Sundays.|"
        "{place} is getting a new tram line from {street} to the {landmark}.|"
        "The main station of {place} will be rebuilt.",
        "Trams will leave every {minutes} minutes.|A monthly ticket costs {ticket} euros.|"
        "The city hopes for {percent} per cent fewer cars in the centre.|"
        "The first {count} vehicles have been ordered.|During the work, passengers have to change at "
        "{street}.",
        "Nobody should have to walk home in the rain|We want to make the car unnecessary|"
        "The old timetable was a riddle, the new one is not|Our passengers have asked for this for years",
    ),
    _story(
        "head teacher|teacher|pupil|parent",
        "Pupils of a school in {place} have planted {hundred} trees.|"
        "A school in {place} is teaching lessons outdoors.|Children in {place} have built a weather "
        "station on their school roof.|A school in {place} has won a national prize for its choir.",
        "The idea came from a class of ten-year-olds.|Parents helped on {count} weekends.|"
        "Other schools now want to follow the example.|The project began in {month} and goes on for a "
        "year.|The results will be shown at the {landmark}.",
        "The children have taught us a lot|I have never seen such concentration|"
        "Next time we want to do something even bigger|They did nearly everything by themselves",
    ),
    _story(
        "trainer|captain|president of the club|goalkeeper",
        "The football team of {place} has won the cup final by {goals} to nil.|"
        "The runners of {place} celebrate a record.|A young swimmer from {place} has won {count} medals.|"
        "The basketball team of {place} is back in the first league.|"
        "The chess club of {place} has beaten the national champion.",
        "The decisive moment came shortly before the end.|About {thousand} thousand fans filled the "
        "stands.|The team will be welcomed at the {landmark} on {day}.|"
        "It was the first victory in {count} years.|The next match is on {day}.",
        "We believed in it until the last minute|I have no voice left|This belongs to the whole town|"
        "Today we dance, tomorrow we train",
    ),
    _story(
        "professor|researcher|head of the laboratory|doctoral student",
        "Researchers in {place} have developed a battery that charges in {minutes} minutes.|"
        "Scientists from {place} have found a new species of beetle.|"
        "A laboratory in {place} has built a very small sensor for clean water.|"
        "Astronomers in {place} have discovered a comet.",
        "The results appeared in a journal on {day}.|The team has worked on it for {count} years.|"
        "It will take some time before it can be used in daily life.|{Hundred} samples were examined.|"
        "Partners from {count} countries took part.",
        "We checked the numbers three times|At first we thought it was a mistake|"
        "This is only the beginning|Patience is our most important instrument",
    ),
    _story(
        "curator|director of the museum|painter|guide",
        "A lost painting has turned up in an attic in {place}.|The museum of {place} opens a show about "
        "{exhibit}.|An old theatre in {place} raises its curtain again.|"
        "{place} is opening a museum about {exhibit}.",
        "More than {hundred} objects are on view until {month}.|Entry is free on {day}s.|"
        "Restoring it took {count} years.|On the first evening, the queue reached as far as {street}.|"
        "Schools can book a tour with the artists.",
        "Every visitor will find a favourite|We could not believe our luck|Art belongs to everyone|"
        "Take your time, the pictures will not run away",
    ),
    _story(
        "biologist|park ranger|bird watcher|head of the zoo",
        "Storks are nesting in {place} for the first time in {count} years.|"
        "A beaver has moved into the city park of {place}.|The zoo of {place} is happy about the birth "
        "of {count} red pandas.|Rare orchids have been found on a meadow near {place}.",
        "Visitors are asked to keep their distance.|A camera shows the animals day and night.|"
        "Last year volunteers had cleaned the banks of the river.|{Hundred} people came to watch on "
        "{day}.|The path along the pond stays closed until {month}.",
        "Nature needs less help than we think, and more peace|I had tears in my eyes|"
        "They feel at home here|Please leave your dogs on the lead",
    ),
    _story(
        "founder|manager|head of the works council|baker",
        "A bakery in {place} has made the longest bread of the country.|"
        "A young company from {place} will create {hundred} jobs.|The old factory on {street} in {place} "
        "becomes a workshop for crafts.|A repair shop in {place} has mended its {thousand} thousandth "
        "device.",
        "Doors open at {hour} in the morning.|The firm was founded in {year} in a garage.|"
        "Sales have grown by {percent} per cent.|Apprentices can apply until {month}.|"
        "The rooms will also be used for courses and concerts.",
        "We started with one table and a lamp|Good work needs good neighbours|"
        "We want to stay in this town|People are tired of throwing things away",
    ),
    _story(
        "organiser|mayor|singer|head cook",
        "{place} celebrates its summer festival on {day}.|The street music festival of {place} begins on "
        "{day}.|Thousands have danced through the night in {place}.|"
        "A market with food from {count} countries opens in {place}.",
        "There are {count} stages between {street} and the {landmark}.|"
        "The programme starts at {hour} and ends at midnight.|About {thousand} thousand guests are "
        "expected.|Entry is free, and the trams run all night.|If it rains, the party moves into the "
        "{landmark}.",
        "Bring comfortable shoes and good mood|Music is our common language|We have cooked for three days|"
        "It is the best weekend of the year",
    ),
    _story(
        "librarian|director of the library|author|mayor",
        "The library of {place} will be open on Sundays.|A book has come back to the library of {place} "
        "after {decades} years.|The new library of {place} has welcomed its first readers.|"
        "{place} is sending a library bus into its suburbs.",
        "It holds {thousand} thousand books, and a room just for silence.|"
        "Membership is free for children.|The building stands between {street} and the {landmark}.|"
        "Volunteers read aloud every {day}.|Loans have gone up by {percent} per cent.",
        "A library is the living room of a town|Late is better than never|"
        "We do not charge a fine this time|Reading is a journey without luggage",
    ),
    _story(
        "doctor|nurse|head of the clinic|health officer",
        "The hospital of {place} has opened a garden for its patients.|"
        "Doctors in {place} are testing walks instead of pills.|A clinic in {place} offers advice on "
        "better sleep.|{place} is building a health centre next to the {landmark}.",
        "{Hundred} people took part in the first {count} months.|The treatment is paid for by the city.|"
        "Patients said that they felt better after {count} weeks.|A second centre on {street} will "
        "follow in {month}.|Evening hours will be offered as well.",
        "Half an hour a day makes a difference|Green is good medicine|Our patients smile more often|"
        "The waiting list is already long",
    ),
    _story(
        "councillor|mayor|city gardener|spokesman of the residents",
        "The city council of {place} has voted for a new park.|{place} will plant {hundred} trees along "
        "its main roads.|Cars have to leave the old town of {place} by {month}.|"
        "The residents of {street} in {place} are getting a playground.",
        "The decision was taken by {votes} votes to {fewer}.|Work begins in {month}.|"
        "The plan costs {million} million euros.|Residents may send in their ideas until {day}.|"
        "In its centre there will be a pond with benches.",
        "Our children will thank us for the shade|It was a long debate, but a good one|"
        "We listen to everybody|A town needs places where nothing is for sale",
    ),
    _story(
        "fire chief|police spokesman|neighbour|rescue worker",
        "Firefighters in {place} have rescued a cat from the roof of the {landmark}.|"
        "A power cut left {place} in the dark for {minutes} minutes.|"
        "A swarm of bees stopped the traffic in {place}.|A lost dog has travelled alone by train to "
        "{place}.",
        "Nobody was hurt.|The street was closed for {count} hours.|"
        "Neighbours brought coffee and cake for the helpers.|The cause is still unknown.|"
        "A video of it has been seen {hundred} thousand times.",
        "That does not happen every day|Everybody stayed calm, especially the animal|"
        "We are glad that it ended well|I had just put the kettle on when it happened",
    ),
    _story(
        "energy adviser|engineer|head of the public utility|mayor",
        "{place} is covering its school roofs with solar panels.|The first wind farm near {place} has "
        "gone into service.|The swimming pool of {place} will be heated with waste heat.|"
        "Households in {place} have saved {percent} per cent of their energy.",
        "It supplies {hundred} homes with power.|The city wants to be climate neutral in {count} years.|"
        "The money comes from a fund of the citizens.|The plant cost {million} million euros.|"
        "Guided tours are offered every {day}.",
        "The sun sends no bill|Everyone can do something|We have counted every kilowatt hour|"
        "It pays off sooner than we thought",
    ),
    _story(
        "archaeologist|historian|builder|head of the dig",
        "Builders have found Roman coins under {street} in {place}.|"
        "An old well has been discovered in the centre of {place}.|"
        "Archaeologists in {place} are digging up a settlement that is {thousand} thousand years old.|"
        "A time capsule from {year} has been opened in {place}.",
        "The finds will be shown in the {landmark} from {month} on.|"
        "Among them are {hundred} pieces of pottery.|The building site rests for {count} weeks.|"
        "Visitors can watch the work on {day}.|Students helped to clean and count everything.",
        "We are standing on stories|I have dreamed of this since I was a child|"
        "Now we must rewrite a chapter|It looked like an ordinary stone at first",
    ),
    _story(
        "writer|director|actress|conductor",
        "A film team is shooting a comedy in {place}.|The orchestra of {place} is giving a concert in "
        "the {landmark}.|A poet from {place} has won a great prize.|"
        "A choir of {hundred} voices will sing in {place} on {day}.",
        "Tickets are available from {day} on.|The rehearsals began in {month}.|"
        "Many residents are taking part as extras.|The prize comes with {thousand} thousand euros.|"
        "It is the work of {count} years.",
        "This town has a very special light|I was peeling potatoes when they called|"
        "Everyone is invited to hum along|The best scenes were not in the script",
    ),
)

NEWS_QUOTE = _split(
    '"{quote}," said {name}, the {role}.|"{quote}," {name} told reporters.|'
    '{Cap_role} {name} said: "{quote}."|'
    '"{quote}," says {role} {name}, who lives near {street}.|"{quote}," said {role} {name} on {day}.'
)
NEWS_CLOSE = _split(
    "The next step follows in {month}.|More details will be announced on {day}.|"
    "People in {place} are delighted.|Not everyone in {place} agrees, but most people are pleased.|"
    "Other cities are watching {place} closely.|{Cap_role} {name} will say more about it on {day}.|"
    "In {place}, everybody is talking about it.|A celebration is planned for {day}.|"
    "{place} has not seen anything like it for years.|The city of {place} will report again in {month}."
)

FIRST = _split(
    "Anna|Maria|Elena|Sofia|Clara|Nina|Laura|Julia|Eva|Ines|Lucia|Marta|Olga|Paula|Rosa|Sara|Teresa|Vera|"
    "Amina|Fatima|Leila|Yuki|Mei|Hana|Priya|Anjali|Grace|Ruth|Alice|Emma|Ella|Ingrid|Astrid|Freya|Karin|Lena|"
    "Petra|Zofia|Irina|Noor|Thomas|Peter|Paul|Martin|Lukas|Jonas|David|Daniel|Simon|Oscar|Hugo|Emil|Anton|"
    "Viktor|Pavel|Ivan|Marco|Luca|Pedro|Diego|Carlos|Miguel|Ahmed|Omar|Karim|Samuel|Joseph|Kofi|Kwame|Arjun|"
    "Ravi|Kenji|Hiro|Wei|Jin|Erik|Lars|Nils|Sven|George|Henry|Frank|Walter"
)
LAST = _split(
    "Silva|Costa|Moreno|Garcia|Romero|Rossi|Bianchi|Conti|Moretti|Dubois|Lambert|Moreau|Laurent|Fischer|"
    "Weber|Schneider|Keller|Huber|Brandt|Vogel|Novak|Dvorak|Kowalski|Nowak|Wisniewski|Horvat|Kovac|Petrov|"
    "Ivanova|Popescu|Nagy|Szabo|Jansen|de Vries|Bakker|Visser|Hansen|Larsen|Olsen|Berg|Lindberg|Nilsson|"
    "Virtanen|Korhonen|Smith|Taylor|Brown|Clarke|Murphy|Walsh|Campbell|Evans|Hughes|Baker|Carter|Mensah|"
    "Okafor|Adeyemi|Mwangi|Diallo|Haddad|Nasser|Rahman|Khan|Patel|Sharma|Gupta|Chen|Wang|Lin|Tanaka|Sato|"
    "Suzuki|Kim|Park|Nguyen|Tran|Santos|Reyes|Papadakis|Demir|Yilmaz|Levy|Stein|Marin|Vidal|Flores|Mendez|"
    "Ortiz"
)
GENERAL: Words = {
    "day": _split("Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"),
    "month": _split("January|February|March|April|May|June|July|August|September|October|November|December"),
    "season": _split("spring|summer|autumn|winter"),
    "street": _split(
        "Mill Street|Bridge Street|Station Road|Market Street|Church Lane|Garden Street|Harbour Road|"
        "Castle Street|Park Avenue|River Road|School Lane|Baker Street|Rose Street|Linden Avenue|Tower Road|"
        "Green Lane|Old Road|Museum Street|Victoria Street|North Street|South Street|Hill Road|Forest Road|"
        "King Street|Queen Street|Canal Street|Meadow Lane|Orchard Road|Fountain Square"
    ),
    "landmark": _split(
        "town hall|market hall|cathedral|old mill|harbour|concert hall|opera house|university|castle|"
        "botanical garden|stadium|city museum|main station|fountain|post office|theatre|old brewery|"
        "lighthouse|water tower|public library"
    ),
    "exhibit": _split(
        "light and shadow|the history of bread|toys from five centuries|women in science|the art of glass|"
        "maps of the sea|old clocks|the life of bees|film posters|the invention of the bicycle|"
        "masks from all over the world|everyday life in {year}|kites|letters from emigrants|the colour blue|"
        "sleep and dreams"
    ),
    "compass": _split("north|south|east|west|north-west|south-west|north-east|south-east"),
    "count": _split("two|three|four|five|six|seven|eight|nine|ten|twelve"),
    "few": _split("five|six|ten|a dozen|twenty"),
    "decades": _split("thirty|forty|fifty|sixty|seventy|eighty"),
    "minutes": _split("five|six|eight|ten|twelve|fifteen|twenty"),
    "hundred": _split(
        "two hundred|three hundred|four hundred|five hundred|six hundred|nearly a thousand|one hundred|eight hundred"
    ),
    "thousand": _split("two|three|four|five|six|eight|ten|twenty|thirty|forty"),
    "million": _split("two|three|five|eight|twelve|fifteen|twenty|thirty"),
    "goals": _split("one|two|three|four|five"),
    "percent": _split("5|10|12|15|18|20|25|30|40"),
    "ticket": _split("19|25|29|35|39|45|49"),
    "metres": _split("50|80|100|120|150|180|200|240|300"),
    "hour": _split("seven|eight|nine|ten"),
    "evening": _split("six|seven|eight|nine"),
    "year": _split("1871|1888|1898|1904|1912|1923|1931|1947|1952|1958|1964|1969|1973|1978|1985|1991|1996"),
    "mm": _split("5|8|10|12|15|20|25|30"),
    "cm": _split("3|5|8|10|12|15|20|30"),
    "gust": _split("40|45|50|55|60|65"),
    "gale": _split("75|80|90|95|100|110|120"),
}
DAY_PARTS = ("morning", "afternoon", "evening")

QUESTIONS: dict[Kind, tuple[str, ...]] = {
    "ad": _split(
        "Write an ad for {x}.|Write a short ad for {x}.|Please write an advertisement for {x}.|"
        "Can you advertise {x}?|I want to sell {x}. Write an ad.|Advertise {x}.|Make an ad for {x}.|"
        "I need an ad for {x}, please.|Create an advertisement for {x}.|Help me sell {x}."
    ),
    "weather": _split(
        "What is the weather in {x}?|What is the weather like in {x}?|How is the weather in {x} today?|"
        "Weather in {x}?|Tell me the weather in {x}.|Write a weather report for {x}.|"
        "Do I need an umbrella in {x}?|Give me the forecast for {x}.|What will the weather be in {x}?"
    ),
    "news": _split(
        "What is the news from {x}?|What is new in {x}?|Write a news item about {x}.|"
        "Tell me the news from {x}.|News from {x}?|Any news from {x}?|What happened in {x}?|"
        "Write a short news story from {x}.|Give me the latest news from {x}."
    ),
}
TITLES: dict[Kind, str] = {"ad": "", "weather": "Weather in {x}", "news": "News from {x}"}

# -------------------------------------------------------------------------------------------------- machinery

_SLOT = re.compile(r"\{(\w+)\}")
_IT = re.compile(r"\bits?\b", re.IGNORECASE)  #: details that speak of one thing


class _Filler:
    """Fills the slots of templates for one text.

    A slot keeps its value for the whole text; a digit at its end asks for a value not used by another.
    """

    def __init__(self, rng: random.Random, words: Words, fixed: Mapping[str, str]) -> None:
        self._rng = rng
        self._words = words
        self._values: dict[str, str] = dict(fixed)

    def fill(self, template: str) -> str:
        """Return the sentence, with a capital at its start.  Raises KeyError for an unknown slot."""
        return _capital(_SLOT.sub(lambda match: self._value(match[1]), template))

    def _value(self, slot: str) -> str:
        if slot not in self._values:
            self._values[slot] = self._draw(slot)
        return self._values[slot]

    def _draw(self, slot: str) -> str:
        if slot.startswith("Cap_"):
            return _capital(self._value(slot.removeprefix("Cap_")))
        if slot[0].isupper():
            return _capital(self._value(slot.lower()))
        base = slot.rstrip("0123456789")
        taken = {value for key, value in self._values.items() if key.rstrip("0123456789") == base}
        choice = self._rng.choice([word for word in self._words[base] if word not in taken])
        return _SLOT.sub(lambda match: self._value(match[1]), choice)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _article(phrase: str) -> str:
    sounds_open = phrase[0].lower() in "aeiou" and not phrase.startswith(("one-", "uku", "unique", "eu"))
    return f"{'an' if sounds_open else 'a'} {phrase}"


def _forms(product: str) -> tuple[str, str]:
    """The singular (or only) form, and the plural (or only) form."""
    singular, _, plural = product.lstrip("+=").partition("/")
    return singular, plural or singular


@cache
def _pairs(held_out: bool) -> tuple[tuple[str, str, str, str], ...]:
    """All (family, sense, adjective, product) with an adjective, either the held-out ones or the others."""
    return tuple(
        (name, sense, adjective, product)
        for name, family in FAMILIES.items()
        for product in family.products
        for sense in family.senses
        for adjective in SENSES[sense][0]
        if adjective not in product and pair_is_held_out(adjective, _forms(product)[0]) == held_out
    )


@cache
def _free_places() -> tuple[str, ...]:
    held = set(held_out_places())
    return tuple(place for place in PLACES if place not in held)


def ad_topic(rng: random.Random, *, held_out: bool = False) -> Topic:
    """Draw an adjective and a product; without ``held_out`` one topic in four has no adjective."""
    family, _, adjective, product = rng.choice(_pairs(held_out))
    if not held_out and rng.random() < 0.25:
        adjective = ""
    singular, plural = _forms(product)
    mass, only_plural = product.startswith("="), product.startswith("+")
    many = only_plural or (not mass and rng.random() < 0.65)
    noun = plural if many else singular
    title = _capital(f"{adjective} {noun}".strip())
    number: Number = "mass" if mass else "many" if many else "one"
    return Topic("ad", title, (singular, plural), family, adjective, noun, number)


def place_topic(rng: random.Random, kind: Kind, *, held_out: bool = False) -> Topic:
    """Draw a place; without ``held_out`` three in ten are invented, so that a model learns to copy names."""
    if held_out:
        place = rng.choice(held_out_places())
    elif rng.random() < 0.3:
        place = rng.choice(_HEADS) + rng.choice(_TAILS)
        while place in held_out_places():
            place = rng.choice(_HEADS) + rng.choice(_TAILS)
    else:
        place = rng.choice(_free_places())
    return topic_of_place(kind, place)


def topic_of_place(kind: Kind, place: str) -> Topic:
    """The topic of a news item or a weather report about this place."""
    return Topic(kind, TITLES[kind].format(x=place), (place,), place=place)


def _lengths(rng: random.Random) -> int:
    return rng.choices((2, 3, 4, 5), weights=(2, 4, 3, 2))[0]


def _keep(rng: random.Random, sentences: Sequence[str], count: int) -> list[str]:
    """The given number of sentences in their order."""
    kept = sorted(rng.sample(range(len(sentences)), min(count, len(sentences))))
    return [sentences[index] for index in kept]


def _write_ad(rng: random.Random, topic: Topic) -> str:
    family = FAMILIES[topic.family]
    many, one = topic.number == "many", topic.number == "one"
    phrase = f"{topic.adjective} {topic.noun}".strip()
    price = rng.randint(*family.price)
    fixed = {
        "n": topic.noun, "an": phrase, "a": _article(phrase) if one else phrase, "adj": topic.adjective,
        "this": f"{'these' if many else 'this'} {phrase}", "our": f"our {phrase}",
        "yours": f"your {topic.noun}", "it": "they" if many else "it", "them": "them" if many else "it",
        "is": "are" if many else "is", "has": "have" if many else "has",
        "s": "" if many else "s", "z": "" if many else "s", "es": "" if many else "es",
        "price": str(price), "before": str(price + max(1, price * rng.randint(15, 60) // 100)),
    }  # fmt: skip
    words = {**GENERAL, "made": family.made, "feat": family.feat, "use": family.use, "who": family.who}
    filler = _Filler(rng, words, fixed)
    senses = [SENSES[sense][1] for sense in family.senses if topic.adjective in SENSES[sense][0]]
    meaning = senses[0] if senses else AD_PLAIN
    # "a cake", "these cakes" and "bread" need different words around a bare noun.
    usable = [text for text in meaning if _fits(text, one=one)]
    plan = [
        rng.choice(family.hook if rng.random() < 0.6 else AD_OPEN),
        rng.choice(usable),
        rng.choice([text for text in AD_FEAT if _fits(text, one=one)]),
        rng.choice([text for text in family.detail if not (many and _IT.search(text))] or family.hook)
        if rng.random() < 0.4
        else rng.choice(AD_USE),
        rng.choice([text for text in AD_CLOSE if _fits(text, one=one)]),
    ]
    sentences: list[str] = []
    for text in _keep(rng, plan, _lengths(rng)):
        just_named = bool(sentences) and topic.named_in(sentences[-1])
        # "It weighs next to nothing" often reads better than the name once more.
        pronoun = just_named and text.startswith("{This} ") and rng.random() < 0.6
        sentences.append(filler.fill(text.replace("{This}", "{It}", 1) if pronoun else text))
    return " ".join(sentences)


def _fits(template: str, *, one: bool) -> bool:
    """A bare noun or phrase ("good {n}", "choose {an}") reads wrongly for one countable thing."""
    bare = re.search(r"(?<!our )(?<!Your )(?<!the )\{n\}|\{an\}", template)
    return not (one and bare)


def _write_weather(rng: random.Random, topic: Topic) -> str:
    warm = topic.place in WARM_PLACES
    sky = SKIES[rng.choice([name for name in SKIES if not (warm and name in ("snow", "frost"))])]
    high = rng.randint(*sky.degrees)
    low = high - rng.randint(4, 9)
    chance = 5 * round(rng.randint(*sky.rain) / 5)
    part = rng.randrange(2)
    fixed = {
        "place": topic.place, "high": _degrees(high), "low": _degrees(low),
        "felt": _degrees(high - rng.randint(1, 4)), "rain": str(chance),
        "part": DAY_PARTS[part], "part2": DAY_PARTS[part + 1],
    }  # fmt: skip
    filler = _Filler(rng, {**GENERAL, "wind": sky.wind}, fixed)
    plan = [rng.choice(part) for part in (sky.now, WEATHER_NUMBERS, sky.later, sky.advice, sky.follows)]
    count = _lengths(rng)
    kept = plan[:1] + _keep(rng, plan[1:], count - 1) if rng.random() < 0.85 else _keep(rng, plan, count)
    return " ".join(filler.fill(text) for text in kept)


def _degrees(value: int) -> str:
    return f"minus {-value}" if value < 0 else str(value)


def _write_news(rng: random.Random, topic: Topic) -> str:
    story = rng.choice(STORIES)
    votes = rng.randint(18, 40)
    fixed = {
        "place": topic.place, "name": f"{rng.choice(FIRST)} {rng.choice(LAST)}",
        "votes": str(votes), "fewer": str(rng.randint(2, votes - 5)),
    }  # fmt: skip
    words = {**GENERAL, "role": story.role, "quote": story.quote}
    filler = _Filler(rng, words, fixed)
    first, second = rng.sample(story.more, 2)
    plan = [first, rng.choice(NEWS_QUOTE), second, rng.choice(NEWS_CLOSE)]
    kept = [rng.choice(story.lead), *_keep(rng, plan, _lengths(rng) - 1)]
    return " ".join(filler.fill(text) for text in kept)


_WRITERS = {"ad": _write_ad, "weather": _write_weather, "news": _write_news}


def write(rng: random.Random, topic: Topic) -> Sample:
    """Write one text of two to five sentences that names its topic."""
    body = _WRITERS[topic.kind](rng, topic)
    while not topic.named_in(body):
        body = _WRITERS[topic.kind](rng, topic)
    subject = topic.place
    if topic.kind == "ad":
        phrase = topic.title[0].lower() + topic.title[1:] if topic.title[1:2].islower() else topic.title
        subject = _article(phrase) if topic.number == "one" else phrase
    return Sample(topic, body, rng.choice(QUESTIONS[topic.kind]).format(x=subject))


def sample(rng: random.Random, *, held_out: bool = False) -> Sample:
    """Draw a topic (half ads, a quarter news, a quarter weather) and write a text about it."""
    kind: Kind = rng.choices(("ad", "news", "weather"), weights=(2, 1, 1))[0]
    topic = ad_topic(rng, held_out=held_out) if kind == "ad" else place_topic(rng, kind, held_out=held_out)
    return write(rng, topic)


def held_out_topics(rng: random.Random, count: int) -> list[Topic]:
    """Different held-out topics: each held-out place twice (weather, news), the rest ads.

    Raises ValueError where ``count`` leaves no room for all places.
    """
    kinds: tuple[Kind, ...] = ("weather", "news")
    of_places = [topic_of_place(kind, place) for kind in kinds for place in held_out_places()]
    if count < len(of_places):
        raise ValueError(f"count must be at least {len(of_places)}, got {count}")
    topics = {topic.title: topic for topic in of_places}
    while len(topics) < count:
        topic = ad_topic(rng, held_out=True)
        topics.setdefault(topic.title, topic)
    return list(topics.values())
