# wherewhen: from labelled videos to trained attention models and a report.
#   snakemake --cores all train_all                                      the demo dataset
#   snakemake --cores all train_all --configfile config/NAME.yaml        another one
import os

from snakemake.utils import min_version

min_version("9.11")


# A file given by --configfile replaces the demo's; Snakemake by itself would merge the two.
if not workflow.overwrite_configfiles:

    configfile: os.path.join(workflow.basedir, "config/demo.yaml")


include: "pipeline/rules/common.smk"
include: "pipeline/rules/preprocess.smk"
include: "pipeline/rules/train.smk"
include: "pipeline/rules/report.smk"


localrules:
    train_all,
    preprocess_all,
    manifest,


rule train_all:
    default_target: True
    input:
        REPORT,


rule preprocess_all:
    input:
        MANIFEST,
        [index_file(stage) for stage in STORES],


onsuccess:
    asked = set(workflow.dag_settings.targets)
    if not asked or asked & {"train_all", "report", REPORT}:
        print(f"The report lies at {REPORT}")
