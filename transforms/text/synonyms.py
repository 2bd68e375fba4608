"""Words for the classes of COCO: other words that captions use for them.

Each line is `class: words`; the class as `plain_label` returns it, the words as lemmas. Words for parts ("cloud",
"branch") are left out, and so are words that more often mean another thing ("trunk", "fan", "model"). `KINDS` has
wider words, which match a class less surely.
"""

import re

_SYNONYMS = """
person: man woman boy girl child kid baby toddler infant lady gentleman guy adult teenager teen people player rider
person: surfer skier snowboarder skateboarder skater cyclist bicyclist biker motorcyclist pedestrian passenger driver
person: bride groom friend worker officer policeman fireman firefighter soldier neighbor guest host
person: student teacher chef cook waiter waitress farmer cowboy jockey batter pitcher catcher umpire goalie athlete
person: runner jogger swimmer dancer singer musician artist photographer tourist traveler shopper customer vendor
person: mother father mom dad son daughter brother sister husband wife grandmother grandfather businessman someone
person: spectator onlooker bystander skydiver climber hiker fisherman sailor pilot nurse doctor human
person: male female passer passerby monk nun clown
person: crowd audience team family couple crew band choir orchestra trio duo gang
bicycle: bike cycle tandem
car: automobile sedan suv van minivan taxi cab hatchback convertible jeep limousine coupe wagon
motorcycle: motorbike moped scooter vespa dirtbike
airplane: plane aeroplane aircraft jet airliner jetliner biplane seaplane glider
bus: coach minibus shuttle trolleybus double-decker
train: locomotive tram subway streetcar trolley railcar engine train-car railway-car box-car
truck: pickup lorry semi firetruck tractor-trailer
boat: ship sailboat canoe kayak ferry yacht rowboat raft dinghy gondola speedboat barge vessel motorboat
traffic light: stoplight signal traffic-light
fire hydrant: hydrant fireplug
stop sign: stop-sign
parking meter: meter
bench: pew
bird: seagull gull pigeon duck goose swan parrot owl eagle hawk crow chicken hen rooster penguin flamingo ostrich
bird: sparrow robin heron pelican peacock turkey finch dove cockatoo stork crane
cat: kitten kitty feline tabby
dog: puppy pup bulldog poodle terrier retriever labrador hound beagle husky dachshund pug collie canine corgi
dog: dalmatian chihuahua shepherd spaniel greyhound
horse: pony stallion mare foal colt mustang
sheep: lamb ram ewe goat
cow: bull cattle calf ox bison buffalo steer
elephant: mammoth
bear: grizzly panda cub
zebra: zebra
giraffe: giraffe
backpack: rucksack knapsack bookbag
umbrella: parasol
handbag: purse bag tote satchel clutch
tie: necktie bowtie
suitcase: luggage baggage briefcase
frisbee: disc disk
skis: ski
snowboard: snowboard
sports ball: ball football basketball baseball volleyball soccerball softball
kite: parafoil
baseball bat: bat
baseball glove: glove mitt
skateboard: longboard board
surfboard: board boogieboard bodyboard paddleboard
tennis racket: racket racquet
bottle: flask jug
wine glass: wineglass goblet glass
cup: mug teacup glass tumbler coffee tea
fork: fork
knife: blade cleaver
spoon: ladle teaspoon
bowl: basin dish
banana: plantain
apple: apple
sandwich: burger hamburger sub panini wrap toast
orange: tangerine clementine mandarin citrus
broccoli: broccoli
carrot: carrot
hot dog: hotdog frankfurter sausage bratwurst
pizza: pizza
donut: doughnut
cake: cupcake cheesecake pastry dessert
chair: armchair stool seat recliner rocker
couch: sofa loveseat settee
potted plant: houseplant plant fern
bed: mattress crib bunk cot
dining table: table desk
toilet: urinal commode
tv: television screen monitor computer
laptop: notebook computer macbook
mouse: mouse
remote: controller remote-control wiimote
keyboard: keypad
cell phone: cellphone phone smartphone iphone telephone mobile
microwave: microwave
oven: stove range
toaster: toaster
sink: washbasin basin
refrigerator: fridge freezer
book: novel textbook magazine
clock: clocktower watch
vase: urn
scissors: scissor shear
teddy bear: teddy bear plush toy-animal stuffed-animal stuffed-toy
hair drier: hairdryer blowdryer dryer
toothbrush: toothbrush
banner: sign poster flag billboard
blanket: quilt comforter bedspread sheet
bridge: overpass viaduct
cardboard: box carton
counter: countertop
curtain: drape
door: doorway gate
floor wood: floor floorboard
flower: rose tulip daisy sunflower blossom bouquet lily
fruit: grape strawberry berry lemon pear peach melon watermelon pineapple lime mango
gravel: pebble
house: home cottage cabin hut barn building
light: lamp streetlight lantern lightbulb chandelier
mirror: mirror
net: netting
pillow: cushion
platform: stage dock pier
playingfield: field court pitch stadium
railroad: track rail railway
river: stream creek canal water
road: street highway lane path asphalt pavement driveway
roof: rooftop
sand: beach desert shore
sea: ocean wave surf water
shelf: bookshelf bookcase shelving
snow: slope ice
stairs: stair staircase step stairway
tent: canopy
towel: washcloth
wall brick: wall
wall stone: wall
wall tile: wall
wall wood: wall
water: lake pond pool puddle river sea ocean
window blind: blind shade shutter
window: windowpane
tree: forest palm bush bushes pine shrub
fence: railing barrier
ceiling: ceiling
sky: sky
cabinet: cupboard drawer closet dresser
table: desk
floor: ground carpet
pavement: sidewalk walkway curb
mountain: hill hillside cliff peak
grass: lawn meadow field pasture
dirt: soil mud ground
paper: napkin document newspaper
food: meal dish salad soup rice pasta vegetable meat
building: skyscraper tower church castle hotel store shop house barn
rock: boulder stone cliff
wall: wall
rug: carpet mat
"""

_KINDS = """
animal: bird cat dog horse sheep cow elephant bear zebra giraffe
pet: cat dog
herd: cow sheep elephant horse zebra giraffe
flock: bird sheep
livestock: sheep cow horse
vehicle: bicycle car motorcycle airplane bus train truck boat
furniture: chair couch bed table bench cabinet
food: banana apple sandwich orange broccoli carrot pizza donut cake fruit
fruit: banana apple orange
vegetable: broccoli carrot
meal: sandwich pizza food
bag: backpack handbag suitcase
plant: tree flower grass
utensil: fork knife spoon
appliance: microwave oven toaster refrigerator
"""


def _parse(table: str) -> dict[str, frozenset[str]]:
    words: dict[str, frozenset[str]] = {}
    for line in table.strip().splitlines():
        label, _, listed = line.partition(": ")
        words[label] = words.get(label, frozenset()) | frozenset(listed.split())
    return words


SYNONYMS = _parse(_SYNONYMS)
"""Other words for a class, by its name as `plain_label` returns it."""

KINDS = _parse(_KINDS)
"""The classes that a wider word covers."""


def plain_label(label: str) -> str:
    """Write a class name as a caption would: "tree-merged" as "tree", "mountain, mount" as "mountain"."""
    return plain_labels(label)[0]


def plain_labels(label: str) -> tuple[str, ...]:
    """The names of a class that has several: "mountain, mount" as "mountain" and "mount"."""
    names = (_plain(name) for name in re.split("[,;/]", re.sub(r"[ _]?\([^)]*\)", "", label)))
    return tuple(name for name in names if name) or (_plain(label),)


def _plain(name: str) -> str:
    words = re.split(r"[\s_-]+", name.lower().strip())
    return " ".join(word for word in words if word not in {"merged", "other", "stuff"})
