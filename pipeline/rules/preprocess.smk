# From video files to the stores. A job works on one shard; it skips every video whose result is in the store already,
# and its declared output is a small receipt, because Snakemake deletes declared outputs before a job starts.


rule probe:
    input:
        f"{PLAN}/media/{{shard}}.json",
    output:
        f"{receipts_folder('probe')}/{{shard}}.json",
    log:
        f"{WORK}/logs/probe/{{shard}}.log",
    benchmark:
        f"{WORK}/benchmarks/probe/{{shard}}-{RECIPES['probe']}.tsv"
    threads: 1
    resources:
        mem_mb=500,
        runtime=120,
    params:
        store=store("probe"),
    shell:
        "{PYTHON} -m stages.probe --shard {input:q} --store {params.store:q}"
        " --on-error {CONFIG.on_error} --receipt {output:q} 2> {log:q}"


rule manifest:
    input:
        labels=[f"{PLAN}/labels/{shard}.json" for shard in SHARDS],
        receipts=receipts("probe"),
    output:
        MANIFEST,
    log:
        f"{WORK}/logs/manifest.log",
    benchmark:
        f"{WORK}/benchmarks/manifest/all-{RECIPES['probe']}.tsv"
    threads: 1
    resources:
        mem_mb=4000,  # 2.4 GB for a million videos, which are all in memory at once
        runtime=60,
    params:
        version=VERSIONS["manifest"],
        receipts=receipts_folder("probe"),
        splits=list(CONFIG.splits),
    shell:
        "{PYTHON} -m stages.manifest --plan {PLAN:q} --receipts {params.receipts:q} --splits {params.splits}"
        " --max-quarantined {CONFIG.max_quarantined} --on-error {CONFIG.on_error} --out {output:q} 2> {log:q}"


rule frames:
    input:
        f"{receipts_folder('probe')}/{{shard}}.json",
    output:
        f"{receipts_folder('frames')}/{{shard}}.json",
    log:
        f"{WORK}/logs/frames/{{shard}}.log",
    benchmark:
        f"{WORK}/benchmarks/frames/{{shard}}-{RECIPES['frames']}.tsv"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=240,
    params:
        store=store("frames"),
        settings=canonical(CONFIG.frames),
    shell:
        "{PYTHON} -m stages.frames --shard {input:q} --store {params.store:q} --params {params.settings:q}"
        " --on-error {CONFIG.on_error} {SHARING} --receipt {output:q} 2> {log:q}"


rule flow:
    input:
        arrivals=arrivals("flow"),
        probed=f"{receipts_folder('probe')}/{{shard}}.json",
    output:
        f"{receipts_folder('flow')}/{{shard}}.json",
    log:
        f"{WORK}/logs/flow/{{shard}}.log",
    benchmark:
        f"{WORK}/benchmarks/flow/{{shard}}-{RECIPES['flow']}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=480,
        flow_gpu=on_gpu(CONFIG.flow),
    params:
        store=store("flow"),
        settings=canonical(CONFIG.flow),
    shell:
        "{PYTHON} -m stages.flow --shard {input.probed:q} --store {params.store:q} --params {params.settings:q}"
        " --on-error {CONFIG.on_error} {SHARING} --receipt {output:q} 2> {log:q}"


if "warped_flow" in STORES:

    rule warped_flow:
        input:
            arrivals=arrivals("warped_flow"),
            probed=f"{receipts_folder('probe')}/{{shard}}.json",
        output:
            f"{receipts_folder('warped_flow')}/{{shard}}.json",
        log:
            f"{WORK}/logs/warped_flow/{{shard}}.log",
        benchmark:
            f"{WORK}/benchmarks/warped_flow/{{shard}}-{RECIPES['warped_flow']}.tsv"
        threads: 1
        resources:
            mem_mb=2000,
            runtime=960,
            flow_gpu=on_gpu(CONFIG.warped_flow),
        params:
            store=store("warped_flow"),
            settings=canonical(CONFIG.warped_flow),
        shell:
            "{PYTHON} -m stages.warped_flow --shard {input.probed:q} --store {params.store:q} --params {params.settings:q}"
            " --on-error {CONFIG.on_error} {SHARING} --receipt {output:q} 2> {log:q}"


# One rule for each store, because the receipts that it gathers differ.
for stage in STORES:

    rule:
        name:
            f"index_{stage}"
        input:
            receipts(stage),
        output:
            index_file(stage),
        log:
            f"{WORK}/logs/index/{stage}.log",
        benchmark:
            f"{WORK}/benchmarks/index_{stage}/all-{RECIPES[stage]}.tsv"
        localrule: True
        threads: 1
        resources:
            mem_mb=2000,
            runtime=30,
        params:
            version=VERSIONS["index"],
            stage=stage,
            shards=f"{PLAN}/shards.json",
            receipts=receipts_folder(stage),
            store=store(stage),
            settings=canonical(getattr(CONFIG, stage)),
        shell:
            "{PYTHON} -m stages.index --stage {params.stage} --shards {params.shards:q} --receipts {params.receipts:q}"
            " --store {params.store:q} --params {params.settings:q} --max-quarantined {CONFIG.max_quarantined}"
            " --out {output:q} 2> {log:q}"
