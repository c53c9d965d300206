# One training job for each experiment, split and seed; then scores for the test videos of each.


for name, experiment in CONFIG.experiments.items():

    rule:
        name:
            f"train_{name}"
        input:
            manifest=MANIFEST,
            index=index_file(experiment.modality),
        output:
            model=f"{run_folder(name)}/model.pt",
            history=f"{run_folder(name)}/history.csv",
        log:
            f"{WORK}/logs/train/{name}-{{split}}-seed{{seed}}.log",
        benchmark:
            f"{WORK}/benchmarks/train/{name}-{TRAIN[name]}-{{split}}-seed{{seed}}.tsv"
        threads: TRAIN_THREADS
        resources:
            mem_mb=4000,
            gpu=CONFIG.compute.devices if GPU else 0,
        params:
            experiment=TRAINING[name],
            folder=run_folder(name),
        shell:
            "{PYTHON} -m stages.train --manifest {input.manifest:q} --index {input.index:q}"
            " --experiment {params.experiment:q} --compute {COMPUTE:q}"
            " --split {wildcards.split} --seed {wildcards.seed} {SHARING} --out {params.folder:q} 2> {log:q}"

    rule:
        name:
            f"predict_{name}"
        input:
            manifest=MANIFEST,
            index=index_file(experiment.modality),
            model=f"{run_folder(name)}/model.pt",
        output:
            scores_file(name),
        log:
            f"{WORK}/logs/predict/{name}-{{split}}-seed{{seed}}.log",
        benchmark:
            f"{WORK}/benchmarks/predict/{name}-{TRAIN[name]}-{{split}}-seed{{seed}}.tsv"
        threads: CONFIG.compute.threads + CONFIG.compute.workers
        resources:
            mem_mb=4000,
            gpu=1 if GPU else 0,
        params:
            experiment=PREDICTING[name],
        shell:
            "{PYTHON} -m stages.predict --manifest {input.manifest:q} --index {input.index:q} --checkpoint {input.model:q}"
            " --experiment {params.experiment:q} --compute {COMPUTE:q}"
            " --split {wildcards.split} {SHARING} --out {output:q} 2> {log:q}"


rule baseline:
    input:
        manifest=MANIFEST,
        index=index_file("flow"),
    output:
        BASELINE,
    log:
        f"{WORK}/logs/baseline/{{split}}.log",
    benchmark:
        f"{WORK}/benchmarks/baseline/{{split}}-{RECIPES['flow']}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
    shell:
        "{PYTHON} -m stages.baseline --manifest {input.manifest:q} --index {input.index:q}"
        " --split {wildcards.split} {SHARING} --out {output:q} 2> {log:q}"
