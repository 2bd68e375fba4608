"""Help of the options that are too long to stand beside them."""

THREADS = "Threads of each process; by default 1 for small models, else the cores divided by the processes."
PRECISION = "Numbers the models compute with: fp32, bf16, or auto (bf16 on CUDA where it is fast, else fp32)."
COPIES = "Copies of each model that all processes of a machine share; by default each process has its own."
LARGE = "Load each model once per machine, for all of its processes."
DATAFLOW = "Machines of Dataflow: l4, t4 or cpu. What stands after -- takes precedence."
ACCELERATOR = (
    "Resource hint of the steps that run a model, as 'type:nvidia-l4;count:1;install-nvidia-driver': other steps run "
    "on machines without it, and pictures are shuffled between the two."
)
DEVICE = "Device of the models: cuda, mps or cpu; by default cuda if there is one."
TWINS = "Samples with one key in several tars: reject all but the first, or rename (a tar's name before its keys)."
RECIPE = "The recipe: `subjectloom recipes` lists them; with a recipe, --help lists its fields."
DRY_RUN = "Say what would be read, downloaded and written, and how long it takes by a probe; write no dataset."
SET = "A field of the config; --FIELD VALUE does the same. `subjectloom recipes NAME` lists the fields."
