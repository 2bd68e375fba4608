"""Ordinary nouns of captions with their plurals, grouped by how the plural is written."""

ADD_S = """
T-shirt U-turn X-ray ache acorn actor adult aeroplane airliner airplane alligator almond alpaca ambulance angel ant
antelope antenna ape apple apricot apron arm armchair arrow artist athlete aunt automobile avalanche avocado axe
baboon backpack badger bag bagel baguette ball balloon bamboo banana bandage banjo banner barbecue barge barn barrel
barrier baseball basin basket basketball bat bathroom batter beagle beak bear beard beaver bed bedroom bedspread bee
beer beetle belief belt bicycle bicyclist bike biker bikini billboard biplane bird blade blanket blender blind block
blossom blouse boar board boat bolt book bookcase boot bottle boulder bouquet bowl bowtie boy bra bracelet breeze
brick bride bridge briefcase broom brother brownie bucket buckle building bull bulldog bulldozer bun bunk bureau
burger burrito bust button cab cabbage cabin cabinet cable cache café cake calendar camel camera can canal candle
canine canoe canteen canyon cap car card carousel carpet carriage carrot cart carton case cassette castle cat
catcher caterpillar cave ceiling cello cellphone chain chair chandelier cheese cheesecake cheetah chef chestnut
chicken chief chihuahua chimney chimpanzee chip chipmunk chopstick cinema circle clarinet claw cleaver clementine
cliff climber clipboard clock clocktower close-up closet cloud clown coaster coat cockatoo cocktail coconut coffee
colander collar collie colt column comet comforter computer cone controller convertible cook cookie cooler corgi
corkscrew costume cot cottage counter countertop coupe court cousin cow cowboy coyote crab cracker crane crate
crayon creek crib cricket crocodile croissant crow crown cub cube cucumber cuff cup cupboard cupcake curb curtain
cushion customer cycle cyclist dachshund dad dalmatian dancer daughter day deck desert desk dessert devil dinosaur
disc disco disk dock doctor document dog doll dolphin dome donkey donut door doorway dot double-decker doughnut dove
dragon drape drawer drawing dresser drill driver driveway drum dryer duck dumpling eagle ear earring egg elbow
elephant emu envelope eraser essay ewe eye eyebrow face fan farmer father faucet feather feline fence fern field
file finger firefighter flag flamingo flashlight flask floor floorboard flower flute foal folder football forest
fork forklift formula fountain frankfurter freezer fridge friend frisbee frog fruit garage garden gate ghost giant
gift giraffe girl glacier glider globe glove gnu goalie goat goblet gondola gorilla grandfather grandmother grape
grasshopper grater greenhouse greyhound grill groom guest guitar gull guy gym hairdryer halo hamburger hammer
hamster hand handbag handkerchief hare harp hat hatchback hawk head headache heart heater hedgehog heel helicopter
helmet hen heron highway hiker hill hillside hippo hoe home hoodie hook horn horse hose hospital host hotdog hotel
hound house houseplant human hummingbird husband hut hydrant icicle igloo infant island jacket jaguar jar jeep jet
jet-ski jockey jogger judge jug juice jungle kangaroo kayak kettle key keyboard keypad kid kimono king kitchen kite
kitten kiwi knapsack knee knight koala labrador ladder ladle ladybug lake lamb lamp lane lantern laptop lawn lawyer
lease leg lemon lemur leopard letter light lightbulb lighter lighthouse lime limousine line lion lip lizard llama
lobster lock locomotive logo lollipop longboard loveseat magazine magnet magpie mammoth mandarin map mare marker
martini mask mat maze meadow meal meatball medal medium melon mermaid merry-go-round meter microphone microscope
microwave milkshake minivan mirror mitt mixer mom monarch mongoose monitor monk monkey monument moon mop moped moth
mother motorbike motorcycle motorcyclist mountain mouth movie muffin mug mule museum mushroom musician mustache
mustang nail napkin neck necklace necktie neighbor nephew net newspaper niche niece noise noodle nose notebook novel
nun nurse oboe ocean office officer olive omelette onion opener orange ornament otter oven owl package painting palm
pan pancake panda panini papaya parasol parcel parent park parrot passenger pasture path patio pavement paw peacock
peak peanut pear pebble pedestrian pelican pen pencil penguin pepper pew phase phone photo photographer piano pickup
picture pie pier pig pigeon piglet pill pillar pillow pilot pine pineapple pipe pirate pitcher pizza plane planet
plant plantain plate plateau platform player plug plum pocket pond poodle pool pope popsicle porcupine portrait
postcard poster pot present pretzel priest prince prize proof pub pudding puddle pug pumpkin pup puppet purse puzzle
pyramid queen quiche quilt rabbi rabbit raccoon racket racquet radiator radio raft rail railing railroad railway
rainbow rake ram range rat raven ray recliner reef reflection refrigerator remote restaurant retriever rhino ribbon
rider ring river road robe robin robot rocker rocket roll roof rooftop rooster root rope rose rowboat rucksack rug
ruler runner sailboat sailor salad sandal sari satchel satellite saucepan saucer sausage saw saxophone scarecrow
school scooter screen screw screwdriver sculpture sea seagull seal seaplane seat sedan seed seesaw selfie semi
settee shade shadow shampoo shark shed sheet shepherd ship shirt shoe shop shopper shore shoulder shovel shower
shrub shutter shuttle sidewalk sign signal singer sink sister sit-up six-pack size skateboard skater ski skier skirt
skunk skydiver skyscraper sled sleeve sleigh slide slipper slope sloth slug smartphone smoothie snail snake sneaker
snowboard snowboarder snowflake sock sofa soldier solo son soup spaniel sparrow spatula speaker spectator speedboat
sphere spider spire sponge spoon square squirrel stadium stage stair staircase stairway stallion stamp stapler star
statue steak steeple steer step stethoscope stocking stomach stone stool stop-sign store stork storm stove straw
stream street streetcar streetlight stripe stroller student studio sub subway suit suitcase sun sundae sunflower
surfboard surfer suv swan sweater swimmer swimsuit swing syringe table taco tail tandem tangerine tank tap tart
tattoo taxi tea teacher teacup teapot teaspoon teen teenager telephone telescope television tent terrace terrier
textbook theater thermometer thumb tiara tie tiger tile tin toad toast toaster tobacco toddler toe toilet top
tortoise tote tourist towel tower town toy track tractor trailer train tram trampoline traveler tray tree triangle
trio trolley truck trumpet tub tulip tumbler turkey turtle tutu tuxedo twin ukulele umbrella umpire uncle unicorn
uniform urinal urn valley vampire van vase vegetable vendor vespa vessel vest viaduct video village violin
volleyball vulture waffle wagon waiter walkie-talkie walkway wall walnut warehouse washbasin washcloth wasp
waterfall watermelon wave whale wheelchair whisk wig windmill window windowpane wine wing wire wizard woodpecker
worker worm wrap wreath yacht yo-yo zebra zipper zombie zoo zucchini
"""
"""Plural: with -s."""

ADD_ES = """
actress albatross arch atlas beach bench bonus box branch brooch brush bus bush campus canvas cargo chess church
circus clutch coach compass couch crocus cross crutch dish domino dress echo eyelash finch fox gas glass hero
hibiscus hippopotamus hourglass iris jack-in-the-box lens lotus lunch mango match mattress minibus mosquito octopus
ostrich overpass patch peach pitch platypus porch potato princess radish rhinoceros sandwich superhero switch
thermos tomato toothbrush torch tornado torpedo trolleybus veto virus volcano waitress walrus waltz watch witch
wrench
"""
"""Plural: with -es."""

Y_TO_IES = """
army baby bakery balcony battery berry bunny butterfly canary candy canopy cherry city country daisy diary dinghy
dragonfly factory fairy ferry fly fry grizzly husky kitty lady library lily lorry party pastry penny pharmacy pony
puppy sky story strawberry tabby trophy wallaby
"""
"""Plural: -ies for -y."""

SAME = """
aircraft bison buffalo deer elk fish goldfish hovercraft jellyfish moose offspring reindeer salmon series sheep
shrimp spacecraft species squid starfish trout
"""
"""Plural: the same word."""

OTHERS = """
algae alga alumni alumnus analyses analysis bacteria bacterium bookshelves bookshelf businessmen businessman
businesswomen businesswoman cacti cactus calves calf chairmen chairman children child craftsmen craftsman crises
crisis criteria criterion curricula curriculum doormen doorman dwarves dwarf elves elf fezzes fez firemen fireman
fishermen fisherman foci focus feet foot fungi fungus gentlemen gentleman geese goose grandchildren grandchild
gunmen gunman halves half hooves hoof horsemen horseman housewives housewife indices index jackknives jackknife
knives knife larvae larva leaves leaf lives life loaves loaf mailmen mailman men man matrices matrix midwives
midwife milkmen milkman mothers-in-law mother-in-law mice mouse nuclei nucleus oases oasis oxen ox passers-by
passer-by penknives penknife people person phenomena phenomenon policemen policeman policewomen policewoman postmen
postman quizzes quiz radii radius repairmen repairman runners-up runner-up salespeople salesperson scarves scarf
selves self shelves shelf snowmen snowman spokespeople spokesperson sportsmen sportsman stepchildren stepchild
stimuli stimulus swordsmen swordsman syllabi syllabus tableaux tableau thieves thief teeth tooth vertebrae vertebra
vertices vertex werewolves werewolf wives wife wolves wolf women woman
"""
"""Plural, then singular."""


PAIRS = {
    **{f"{noun}s": noun for noun in ADD_S.split()},
    **{f"{noun}es": noun for noun in ADD_ES.split()},
    **{f"{noun[:-1]}ies": noun for noun in Y_TO_IES.split()},
    **{noun: noun for noun in SAME.split()},
    **dict(zip(OTHERS.split()[::2], OTHERS.split()[1::2], strict=True)),
}
"""Plural to singular."""
