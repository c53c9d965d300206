# One training job for each split and seed of what is trained; then scores for the test videos of each experiment.
# Experiments whose training is the same share its job, and likewise for scores and the pre-training of a SAN.


for name in first_with_each(SAN):
    if CONFIG.experiments[name].san.targets == "flying_chairs":

        rule:
            name:
                f"pretrain_san_{name}"
            output:
                san=f"{san_folder(name)}/san.pt",
                history=f"{san_folder(name)}/history.csv",
            log:
                f"{WORK}/logs/pretrain_san/{name}.log",
            benchmark:
                f"{WORK}/benchmarks/pretrain_san/{name}-{SAN[name]}.tsv"
            threads: TRAIN_THREADS
            resources:
                mem_mb=CONFIG.compute.devices * MODEL_MB,
                runtime=1440,
                gpu=CONFIG.compute.devices if GPU else 0,
            params:
                folder=san_folder(name),
            shell:
                "{PYTHON} -m stages.pretrain_san {TOLD:{rule}.} --compute {COMPUTE:q}"
                " --seed 0 --out {params.folder:q} 2> {log:q}"

    else:

        rule:
            name:
                f"pretrain_san_{name}"
            input:
                manifest=MANIFEST,
                frames=index_file("frames"),
                flow=index_file("flow"),
            output:
                san=f"{san_folder(name)}/san.pt",
                history=f"{san_folder(name)}/history.csv",
            log:
                f"{WORK}/logs/pretrain_san/{name}-{{split}}-seed{{seed}}.log",
            benchmark:
                f"{WORK}/benchmarks/pretrain_san/{name}-{SAN[name]}-{{split}}-seed{{seed}}.tsv"
            threads: TRAIN_THREADS
            resources:
                mem_mb=CONFIG.compute.devices * MODEL_MB,
                runtime=1440,
                gpu=CONFIG.compute.devices if GPU else 0,
            params:
                folder=san_folder(name),
            shell:
                "{PYTHON} -m stages.pretrain_san {TOLD:{rule}.} --compute {COMPUTE:q}"
                " --manifest {input.manifest:q} --frames {input.frames:q} --flow {input.flow:q}"
                " --split {wildcards.split} --seed {wildcards.seed} {SHARING} --out {params.folder:q} 2> {log:q}"


for name in first_with_each(FEATURES):
    experiment = CONFIG.experiments[name]

    rule:
        name:
            f"features_{name}"
        input:
            media=f"{PLAN}/media/{{shard}}.json",
            index=index_file(experiment.modality),
            model=f"{run_folder(experiment.features)}/model.pt",
        output:
            f"{features_folder(name)}/{{shard}}.json",
        log:
            f"{WORK}/logs/features/{name}-{{split}}-seed{{seed}}-{{shard}}.log",
        benchmark:
            f"{WORK}/benchmarks/features/{name}-{FEATURES[name]}-{{split}}-seed{{seed}}-{{shard}}.tsv"
        threads: MODEL_THREADS
        resources:
            mem_mb=MODEL_MB,
            runtime=480,
            gpu=1 if GPU else 0,
        params:
            store=CONFIG.store_folder("features", FEATURES[name]),
        shell:
            "{PYTHON} -m stages.features --shard {input.media:q} --index {input.index:q} --checkpoint {input.model:q}"
            " {TOLD:{rule}.} --compute {COMPUTE:q} {SHARING} --store {params.store:q} --receipt {output:q} 2> {log:q}"


for name in first_with_each(TRAIN):
    experiment = CONFIG.experiments[name]
    initial, mars = experiment.initial, experiment.mars
    taught_by = CONFIG.experiments[mars.teacher] if mars else None

    rule:
        name:
            f"train_{name}"
        input:
            manifest=MANIFEST,
            index=index_file(experiment.modality),
            initial=f"{run_folder(initial)}/model.pt" if initial else [],
            san=f"{san_folder(name)}/san.pt" if name in SAN else [],
            teacher=f"{run_folder(mars.teacher)}/model.pt" if mars else [],
            beside=index_file(taught_by.modality) if mars else [],
            features=features_read(name),
        output:
            model=f"{run_folder(name)}/model.pt",
            history=f"{run_folder(name)}/history.csv",
        log:
            f"{WORK}/logs/train/{name}-{{split}}-seed{{seed}}.log",
        benchmark:
            f"{WORK}/benchmarks/train/{name}-{TRAIN[name]}-{{split}}-seed{{seed}}.tsv"
        threads: TRAIN_THREADS
        resources:
            mem_mb=CONFIG.compute.devices * MODEL_MB,
            runtime=1440,
            gpu=CONFIG.compute.devices if GPU else 0,
        params:
            folder=run_folder(name),
            features=features_folder(name) if name in FEATURES else [],
            beside=(
                f"{taught_by.modality}={index_file(taught_by.modality)}"
                if mars
                else []
            ),
        shell:
            "{PYTHON} -m stages.train --manifest {input.manifest:q} --index {input.index:q}"
            " --initial {input.initial:q} --san {input.san:q} --teacher {input.teacher:q} --beside {params.beside:q}"
            " --features {params.features:q} --shards {PLAN:q}/shards.json {TOLD:{rule}.} --compute {COMPUTE:q}"
            " --split {wildcards.split} --seed {wildcards.seed} {SHARING} --out {params.folder:q} 2> {log:q}"


for name in first_with_each({name: scores_file(name) for name in CONFIG.experiments}):

    rule:
        name:
            f"predict_{name}"
        input:
            manifest=MANIFEST,
            index=index_file(CONFIG.experiments[name].modality),
            model=f"{run_folder(name)}/model.pt",
            features=features_read(name),
        output:
            scores_file(name),
        log:
            f"{WORK}/logs/predict/{name}-{{split}}-seed{{seed}}.log",
        benchmark:
            f"{WORK}/benchmarks/predict/{name}-{TRAIN[name]}-{{split}}-seed{{seed}}.tsv"
        threads: MODEL_THREADS
        resources:
            mem_mb=MODEL_MB,
            runtime=480,
            gpu=1 if GPU else 0,
        params:
            features=features_folder(name) if name in FEATURES else [],
        shell:
            "{PYTHON} -m stages.predict --manifest {input.manifest:q} --index {input.index:q} --checkpoint {input.model:q}"
            " --features {params.features:q} --shards {PLAN:q}/shards.json {TOLD:{rule}.} --compute {COMPUTE:q}"
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
        mem_mb=2000 + WHOLE_MB,
        runtime=60,
    shell:
        "{PYTHON} -m stages.baseline --manifest {input.manifest:q} --index {input.index:q}"
        " --split {wildcards.split} {SHARING} --out {output:q} 2> {log:q}"
