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
                mem_mb=4000,
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
                mem_mb=4000,
                gpu=CONFIG.compute.devices if GPU else 0,
            params:
                folder=san_folder(name),
            shell:
                "{PYTHON} -m stages.pretrain_san {TOLD:{rule}.} --compute {COMPUTE:q}"
                " --manifest {input.manifest:q} --frames {input.frames:q} --flow {input.flow:q}"
                " --split {wildcards.split} --seed {wildcards.seed} {SHARING} --out {params.folder:q} 2> {log:q}"


for name in first_with_each(TRAIN):
    experiment = CONFIG.experiments[name]
    initial = experiment.initial

    rule:
        name:
            f"train_{name}"
        input:
            manifest=MANIFEST,
            index=index_file(experiment.modality),
            initial=f"{run_folder(initial)}/model.pt" if initial else [],
            san=f"{san_folder(name)}/san.pt" if name in SAN else [],
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
            folder=run_folder(name),
        shell:
            "{PYTHON} -m stages.train --manifest {input.manifest:q} --index {input.index:q}"
            " --initial {input.initial:q} --san {input.san:q} {TOLD:{rule}.} --compute {COMPUTE:q}"
            " --split {wildcards.split} --seed {wildcards.seed} {SHARING} --out {params.folder:q} 2> {log:q}"


for name in first_with_each({name: scores_file(name) for name in CONFIG.experiments}):

    rule:
        name:
            f"predict_{name}"
        input:
            manifest=MANIFEST,
            index=index_file(CONFIG.experiments[name].modality),
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
        shell:
            "{PYTHON} -m stages.predict --manifest {input.manifest:q} --index {input.index:q} --checkpoint {input.model:q}"
            " {TOLD:{rule}.} --compute {COMPUTE:q}"
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
