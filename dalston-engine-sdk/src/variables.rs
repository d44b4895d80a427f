//! The environment variables that this crate reads, beside those of [`dalston_telemetry::variables`].

use dalston_telemetry::variables::{Variable, VariableGroup};

/// All of them.
pub const VARIABLES: &[VariableGroup] = &[
    VariableGroup::new(
        "Engines",
        "",
        "",
        &[
            Variable::new(
                &["DALSTON_DEVICE"],
                "`auto`",
                "Where to compute: `auto`, `cpu`, `cuda` or `cuda:N`",
            ),
            Variable::new(
                &["DALSTON_PRECISION"],
                "`auto`",
                "In which number format: `auto`, `float32`, `float16` or `bfloat16`",
            ),
            Variable::new(
                &["DALSTON_DEFAULT_MODEL"],
                "the engine's",
                "The model for tasks that name none",
            ),
            Variable::new(
                &["DALSTON_MODEL_DIR"],
                "none",
                "The directory that models' names are looked up in, before any download",
            ),
            Variable::new(
                &["DALSTON_MODEL_PRELOAD"],
                "nothing",
                "Models to load before the first task, with commas between; `true` for the default one",
            ),
            Variable::new(
                &["DALSTON_MAX_LOADED_MODELS"],
                "2",
                "How many models an inference thread keeps",
            ),
            Variable::new(
                &["DALSTON_MODEL_TTL_SECONDS"],
                "3600",
                "How long a model is kept that no task asks for",
            ),
            Variable::new(
                &["DALSTON_SLOTS"],
                "1",
                "Inference threads, each with models of its own; at most 1024",
            ),
            Variable::new(
                &["DALSTON_ENGINE_ID"],
                "the engine's",
                "Another name for the engine, and so another queue",
            ),
            Variable::new(
                &["DALSTON_WORKER_ID", "DALSTON_INSTANCE"],
                "random",
                "What makes the name of this process unique; must be new for every start",
            ),
            Variable::new(
                &["DALSTON_DEFAULT_TASK_TIMEOUT_S"],
                "3600",
                "Seconds for a task whose queue entry gives no deadline",
            ),
            Variable::new(
                &["DALSTON_DRAIN_TIMEOUT_SECONDS"],
                "25",
                "Seconds that tasks may go on after the worker was told to stop",
            ),
            Variable::new(
                &["DALSTON_MAX_DELIVERIES"],
                "3",
                "How often a task may be delivered",
            ),
            Variable::new(&["TMPDIR"], "`/tmp`", "Where the directories of tasks are made"),
            Variable::new(
                &["DALSTON_TEMP_PURGE_MAX_AGE_S"],
                "2592000 (30 days)",
                "How old a directory of a task gets there before it is removed, at the start and every hour: a process that was killed leaves them",
            ),
            Variable::new(
                &["DALSTON_MAX_STUCK_THREADS"],
                "2",
                "Inference threads stuck in calls that never return before the worker gives up",
            ),
        ],
    ),
    VariableGroup::new(
        "Workers of a live deployment",
        "the command `run`",
        "`rediss://` and `https://` trust the certificate authorities of the system. For one of your own, set `SSL_CERT_FILE` to a file of PEM certificates (or `SSL_CERT_DIR` to a directory): they take the place of the system's.",
        &[
            Variable::new(
                &["REDIS_URL"],
                "`redis://localhost:6379`",
                "The Redis server with queues, events and registry: `redis://[[user]:password@]host[:port][/database]`; `rediss://` for TLS",
            ),
            Variable::new(
                &["DALSTON_S3_BUCKET"],
                "`dalston-artifacts`",
                "The bucket with the files of tasks",
            ),
            Variable::new(&["DALSTON_S3_REGION"], "`eu-west-2`", "Its region"),
            Variable::new(
                &["DALSTON_S3_ENDPOINT_URL"],
                "Amazon's",
                "A server that speaks S3's protocol",
            ),
            Variable::new(
                &["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"],
                "those of the machine",
                "Keys. Without them, what the machine offers is used, as Amazon's own clients do: `AWS_WEB_IDENTITY_TOKEN_FILE`, `AWS_ROLE_ARN`, `AWS_ROLE_SESSION_NAME`, `AWS_ENDPOINT_URL_STS`, `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI`, `AWS_CONTAINER_CREDENTIALS_FULL_URI`, `AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE`, `AWS_METADATA_ENDPOINT`",
            ),
            Variable::new(
                &["DALSTON_MODEL_SOURCE"],
                "`s3`",
                "Where to look for a model that is not on this machine: `s3` (`models/{model_id}/` in the bucket), `hf` (the Hugging Face hub), several with commas between, or `auto` for both in this order",
            ),
            Variable::new(
                &["DALSTON_MODEL_CACHE_DIR"],
                "`s3-cache` under `DALSTON_MODEL_DIR`, else under `/models` if that is a directory, else under `~/.cache/dalston/models`",
                "Where downloaded models are kept. Processes may share it, also with the platform's own engines",
            ),
            Variable::new(
                &["DALSTON_MODEL_CACHE_MAX_GB"],
                "0",
                "GiB that the models there may take; those that were not used for longest go first. 0: no limit",
            ),
            Variable::new(
                &["DALSTON_MODEL_CACHE_TTL_HOURS"],
                "0",
                "Hours after which a model that nobody uses is removed from there. 0: never",
            ),
            Variable::new(
                &["DALSTON_MODEL_CACHE_SCAN_INTERVAL"],
                "600",
                "Seconds between two looks at these limits",
            ),
            Variable::new(
                &["HF_TOKEN"],
                "none",
                "The key to models of the hub that are not open to everybody",
            ),
            Variable::new(
                &["HF_ENDPOINT"],
                "`https://huggingface.co`",
                "The hub, or a mirror of it",
            ),
            Variable::new(
                &["DALSTON_METRICS_PORT"],
                "9100",
                "The port of `/health`, `/metrics`, `/v1/capabilities`, `/debug/status` and the two routes for transcription",
            ),
            Variable::new(
                &["DALSTON_HTTP_MAX_REQUESTS"],
                "16",
                "Recordings that may come in there, or be worked on, at the same time; 0 turns the two routes off",
            ),
            Variable::new(&["DALSTON_HTTP_MAX_UPLOAD_MB"], "1024", "How large each may be"),
            Variable::new(
                &["DALSTON_HTTP_QUEUE_TIMEOUT_SECONDS"],
                "60",
                "How long each may wait for its turn before its sender is told to come back",
            ),
            Variable::new(
                &["DALSTON_DEPLOY_ENV"],
                "`local`; `aws` on EC2",
                "The environment that the registry shows. If it is set, only with `aws` is anybody asked whether this is EC2",
            ),
            Variable::new(
                &["DALSTON_HOST_HOSTNAME"],
                "the host name; on EC2 the instance id is shown instead",
                "The machine's name that the registry shows",
            ),
            Variable::new(
                &["DALSTON_SPOT_DRAIN"],
                "`all`",
                "Which notices about an EC2 spot instance start the drain: `all`, `interruption` (not rebalance recommendations), or `off`",
            ),
        ],
    ),
];
