//! The files of the stack against each other, and against the list of known defects of such files.

use std::collections::BTreeSet;

use serde_yaml_ng::Value;

use crate::files::{STACK, list, read, text, yaml};

/// Services that exist for telemetry only.
const TELEMETRY: [&str; 7] = [
    "jaeger",
    "otel-collector",
    "prometheus",
    "alertmanager",
    "grafana",
    "cadvisor",
    "queue-exporter",
];

/// Their budget of memory, in MiB.
const TELEMETRY_MIB: u64 = 3 * 1024;

pub(crate) struct Stack {
    compose: Value,
    collector: Value,
    prometheus: Value,
    datasources: Value,
    boards: Value,
    alertmanager: Value,
}

type Row = (&'static str, &'static str, fn(&Stack) -> bool);

/// A row for each known defect: its number, and the sentence that must be true.
const ROWS: [Row; 30] = [
    (
        "1.1",
        "the exporter for Prometheus is called prometheus",
        |stack| stack.has_exporter("prometheus") && !stack.has_exporter("prometheusexporter"),
    ),
    ("1.2", "spans reach Jaeger over OTLP", |stack| {
        let to_jaeger = &stack.collector["exporters"]["otlp_grpc/jaeger"];
        to_jaeger["endpoint"] == "jaeger:4317" && to_jaeger["tls"]["insecure"] == true
    }),
    ("1.3", "the removed exporter for logs is not used", |stack| {
        !stack.has_exporter("logging")
            && !read(&format!("{STACK}/collector/otel-collector.yaml")).contains("loglevel")
    }),
    (
        "1.4",
        "the health check is declared, listed, and open to other hosts",
        |stack| {
            let declared = &stack.collector["extensions"]["health_check"]["endpoint"];
            let listed = list(&stack.collector["service"]["extensions"]);
            declared == "0.0.0.0:13133" && listed.iter().any(|name| name == "health_check")
        },
    ),
    ("1.5", "the image without a shell has no health check", |stack| {
        stack.service("otel-collector")["healthcheck"].is_null()
    }),
    ("1.6", "no service waits for telemetry", |stack| {
        stack.services().all(|(_, service)| {
            let needs = names(&service["depends_on"]);
            needs.iter().all(|need| !TELEMETRY.contains(&need.as_str()))
        })
    }),
    (
        "1.7",
        "the collector refuses data before the kernel ends it",
        |stack| {
            let limiter = &stack.collector["processors"]["memory_limiter"];
            let limit = stack.memory("otel-collector");
            let go = text(&stack.service("otel-collector")["environment"]["GOMEMLIMIT"]);
            limiter["limit_percentage"] == 75
                && limiter["spike_limit_percentage"] == 15
                && limiter["check_interval"] == "1s"
                && go == format!("{}MiB", limit * 8 / 10)
        },
    ),
    (
        "1.8",
        "the memory limiter is the first processor, and the batch the last",
        |stack| {
            let pipelines = stack.collector["service"]["pipelines"].as_mapping().unwrap();
            pipelines
                .values()
                .all(|pipeline| list(&pipeline["processors"]) == ["memory_limiter", "batch"])
        },
    ),
    ("1.9", "all ports are on the loopback address", |stack| {
        stack.ports().all(|(_, port)| port.starts_with("127.0.0.1:"))
    }),
    (
        "1.10",
        "pushed series keep their job, exemplars and idle counters",
        |stack| {
            let exporter = &stack.collector["exporters"]["prometheus"];
            stack.job("otel-collector")["honor_labels"] == true
                && exporter["enable_open_metrics"] == true
                && exporter["metric_expiration"] != Value::Null
                && stack.job("otel-collector")["static_configs"][0]["targets"][0] == "otel-collector:8889"
        },
    ),
    (
        "1.11",
        "no constant labels, and no prefix for the names",
        |stack| {
            let exporter = &stack.collector["exporters"]["prometheus"];
            exporter["const_labels"].is_null() && exporter["namespace"].is_null()
        },
    ),
    ("2.1", "Jaeger is version 2", |stack| {
        text(&stack.service("jaeger")["image"]).starts_with("jaegertracing/jaeger:2.")
    }),
    ("2.2", "traces are kept in bounded storage", |_| {
        let jaeger = yaml("jaeger/jaeger.yaml");
        let badger = &jaeger["extensions"]["jaeger_storage"]["backends"]["files"]["badger"];
        badger["ephemeral"] == false && badger["ttl"]["spans"] == "72h"
    }),
    ("2.3", "Jaeger receives OTLP inside the network", |stack| {
        let jaeger = yaml("jaeger/jaeger.yaml");
        list(&stack.service("jaeger")["expose"]) == ["4317", "4318"]
            && jaeger["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"] == "0.0.0.0:4317"
    }),
    ("2.4", "each port has one owner, and Grafana has 3001", |stack| {
        let published: Vec<String> = stack.ports().map(|(_, port)| port).collect();
        let unique: BTreeSet<&String> = published.iter().collect();
        unique.len() == published.len()
            && stack
                .ports()
                .any(|port| port == ("grafana".into(), "127.0.0.1:3001:3000".into()))
    }),
    ("2.5", "both transports of OTLP are published", |stack| {
        let own = |port: &str| {
            stack
                .ports()
                .any(|found| found == ("otel-collector".into(), port.into()))
        };
        own("127.0.0.1:4317:4317") && own("127.0.0.1:4318:4318")
    }),
    (
        "2.6",
        "Grafana reads its provisioning from the mounted directories",
        |stack| {
            stack.mounts("grafana", "./grafana/provisioning:/etc/grafana/provisioning:ro")
                && !list(&stack.datasources["datasources"]).is_empty()
                && !list(&stack.boards["providers"]).is_empty()
        },
    ),
    ("2.7", "the path of the boards is the mounted one", |stack| {
        let path = text(&stack.boards["providers"][0]["options"]["path"]);
        stack.mounts("grafana", &format!("./grafana/dashboards:{path}:ro"))
    }),
    (
        "2.8",
        "data sources have fixed ids, and exemplars open traces",
        |stack| {
            let sources = list(&stack.datasources["datasources"]);
            let ids: Vec<&str> = sources.iter().map(|source| text(&source["uid"])).collect();
            let to = &sources[0]["jsonData"]["exemplarTraceIdDestinations"][0];
            ids == ["prometheus", "jaeger", "alertmanager"]
                && to["name"] == "trace_id"
                && to["datasourceUid"] == "jaeger"
        },
    ),
    (
        "2.9",
        "nothing provisioned can be edited in the browser",
        |stack| {
            let sources = list(&stack.datasources["datasources"]);
            sources.iter().all(|source| source["editable"] == false)
                && stack.boards["providers"][0]["allowUiUpdates"] == false
        },
    ),
    ("2.10", "no default password, and no anonymous access", |stack| {
        let environment = &stack.service("grafana")["environment"];
        text(&environment["GF_SECURITY_ADMIN_PASSWORD"]).starts_with("${GRAFANA_ADMIN_PASSWORD:?")
            && environment["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    }),
    ("2.11", "images are pinned to current versions", |stack| {
        let current = [
            ("prometheus", "prom/prometheus:v3."),
            ("grafana", "grafana/grafana:13."),
        ];
        current
            .iter()
            .all(|(name, image)| text(&stack.service(name)["image"]).starts_with(image))
            && stack
                .services()
                .all(|(_, service)| is_pinned(text(&service["image"])))
    }),
    (
        "2.12",
        "a job for each service, and for each container of a scaled one",
        |stack| {
            let scaled = ["engine-prepare", "engine-whisper"];
            let single = [
                "gateway",
                "orchestrator",
                "queue-exporter",
                "prometheus",
                "jaeger",
                "otel-collector-self",
            ];
            single
                .iter()
                .all(|job| !stack.job(job)["static_configs"].is_null())
                && scaled.iter().all(|job| {
                    let discovery = &stack.job(job)["dns_sd_configs"][0];
                    discovery["names"][0] == *job && discovery["type"] == "A" && discovery["port"] == 9100
                })
        },
    ),
    (
        "2.13",
        "rules are a mounted directory, and alerts reach a receiver",
        |stack| {
            stack.prometheus["rule_files"][0] == "/etc/prometheus/rules/*.yml"
                && stack.mounts("prometheus", "./prometheus:/etc/prometheus:ro")
                && list(&stack.service("prometheus")["command"]).contains(&"--web.enable-lifecycle".into())
                && stack.prometheus["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"][0]
                    == "alertmanager:9093"
                && !stack.alertmanager["route"]["receiver"].is_null()
        },
    ),
    (
        "2.14",
        "variables of `docker compose` reach the services, and the log command works",
        |stack| {
            let environment = &stack.service("gateway")["environment"];
            let readme = read(&format!("{STACK}/README.md"));
            text(&environment["OTEL_ENABLED"]) == "${OTEL_ENABLED:-false}"
                && readme.contains("logs --no-log-prefix --no-color | jq -Rc")
                && readme.contains("fromjson?")
        },
    ),
    (
        "2.15",
        "the span of the gateway's request has the id of the job",
        |_| {
            // Tests of the platform assert it; this one follows a move of the code.
            let submission = read("dalston-telemetry/src/services/gateway/submission.rs");
            submission.contains("self.request.set_attribute(attr::JOB_ID")
        },
    ),
    (
        "2.16",
        "the README says that metrics cost something without the profile",
        |_| read(&format!("{STACK}/README.md")).contains("that costs little, and is not free"),
    ),
    ("7", "the name of the sampler exists", |_| {
        let env = read(&format!("{STACK}/.env.example"));
        env.contains("\nOTEL_TRACES_SAMPLER=parentbased_traceidratio\n")
    }),
    (
        "7",
        "endpoints have a scheme, and the port of their protocol",
        |stack| {
            let env = read(&format!("{STACK}/.env.example"));
            let environment = &stack.service("gateway")["environment"];
            env.contains("\nOTEL_EXPORTER_OTLP_ENDPOINT=http://otel-collector:4317\n")
                && env.contains("\nOTEL_EXPORTER_OTLP_PROTOCOL=grpc\n")
                && text(&environment["OTEL_EXPORTER_OTLP_ENDPOINT"]).ends_with(":-http://jaeger:4317}")
                && text(&environment["OTEL_EXPORTER_OTLP_PROTOCOL"]).ends_with(":-grpc}")
        },
    ),
    (
        "7",
        "each program of ours has a name of its own, and no timeout in seconds",
        |stack| {
            let programs = stack
                .services()
                .filter(|(_, service)| !service["build"].is_null());
            let names: Vec<&Value> = programs
                .map(|(_, service)| &service["environment"]["OTEL_SERVICE_NAME"])
                .collect();
            let unique: BTreeSet<&str> = names.iter().map(|name| text(name)).collect();
            unique.len() == names.len()
                && !read(&format!("{STACK}/docker-compose.yml")).contains("OTEL_EXPORTER_OTLP_TIMEOUT")
        },
    ),
];

impl Stack {
    pub(crate) fn load() -> Self {
        Self {
            compose: yaml("docker-compose.yml"),
            collector: yaml("collector/otel-collector.yaml"),
            prometheus: yaml("prometheus/prometheus.yml"),
            datasources: yaml("grafana/provisioning/datasources/datasources.yml"),
            boards: yaml("grafana/provisioning/dashboards/dashboards.yml"),
            alertmanager: yaml("alertmanager/alertmanager.yml"),
        }
    }

    fn services(&self) -> impl Iterator<Item = (&str, &Value)> {
        let services = self.compose["services"].as_mapping().unwrap();
        services.iter().map(|(name, service)| (text(name), service))
    }

    pub(crate) fn service(&self, name: &str) -> &Value {
        let service = &self.compose["services"][name];
        assert!(service.is_mapping(), "no service {name}");
        service
    }

    fn job(&self, name: &str) -> Value {
        let jobs = list(&self.prometheus["scrape_configs"]);
        let mut found = jobs.into_iter().filter(|job| job["job_name"] == name);
        found.next().unwrap_or_else(|| panic!("no job {name}"))
    }

    /// Published ports with their services.
    fn ports(&self) -> impl Iterator<Item = (String, String)> {
        self.services().flat_map(|(name, service)| {
            let ports = list(&service["ports"]).into_iter();
            ports.map(move |port| (name.to_owned(), text(&port).to_owned()))
        })
    }

    fn has_exporter(&self, name: &str) -> bool {
        !self.collector["exporters"][name].is_null()
    }

    fn mounts(&self, service: &str, mount: &str) -> bool {
        list(&self.service(service)["volumes"]).contains(&mount.into())
    }

    /// The limit of a service, in MiB.
    fn memory(&self, name: &str) -> u64 {
        let limit = text(&self.service(name)["deploy"]["resources"]["limits"]["memory"]);
        let (number, unit) = limit.split_at(limit.len() - 1);
        let number: u64 = number.parse().unwrap();
        match unit {
            "M" => number,
            "G" => number * 1024,
            _ => panic!("{name}: memory of {limit}"),
        }
    }
}

/// The elements of a list, or the keys of a mapping.
fn names(value: &Value) -> Vec<String> {
    match value.as_mapping() {
        Some(mapping) => mapping.keys().map(|key| text(key).to_owned()).collect(),
        None => list(value).iter().map(|name| text(name).to_owned()).collect(),
    }
}

/// Whether an image has a tag with a version of three numbers at least, or a date.
fn is_pinned(image: &str) -> bool {
    let tag = image.rsplit_once(':').map_or("", |(_, tag)| tag);
    tag.chars().filter(|c| *c == '.').count() >= 2 && !tag.contains("latest")
}

#[test]
fn no_known_defect_is_in_the_files() {
    let stack = Stack::load();
    let failed: Vec<_> = ROWS
        .iter()
        .filter(|(_, _, check)| !check(&stack))
        .map(|(row, sentence, _)| format!("{row}: {sentence}"))
        .collect();
    assert!(failed.is_empty(), "not true any more: {failed:#?}");
}

#[test]
fn each_service_has_limits_and_telemetry_keeps_its_budget() {
    let stack = Stack::load();
    for (name, service) in stack.services() {
        assert!(stack.memory(name) > 0);
        let cpus = &service["deploy"]["resources"]["limits"]["cpus"];
        assert!(text(cpus).parse::<f64>().unwrap() > 0.0, "{name}");
    }
    let total: u64 = TELEMETRY.iter().map(|name| stack.memory(name)).sum();
    assert!(total <= TELEMETRY_MIB, "{total} MiB");
}

#[test]
fn env_example_has_exactly_the_variables_of_the_stack() {
    let compose = read(&format!("{STACK}/docker-compose.yml"));
    let used: BTreeSet<&str> = compose
        .split("${")
        .skip(1)
        .map(|rest| rest.split([':', '}']).next().unwrap())
        .chain(["COMPOSE_PROFILES"])
        .collect();
    let example = read(&format!("{STACK}/.env.example"));
    let lines = example.lines().filter(|line| !line.starts_with('#'));
    let given: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once('=')).collect();
    assert_eq!(given.iter().map(|(name, _)| *name).collect::<BTreeSet<_>>(), used);
    for (name, value) in given {
        let is_required = compose.contains(&format!("${{{name}:?"));
        assert!(!is_required || value.is_empty(), "{name} has a default: {value}");
    }
    for (name, value) in [
        ("OTEL_METRICS_EXPORTER", "otlp"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "15000"),
        ("INSTANCE_TYPE", ""),
    ] {
        assert!(example.contains(&format!("\n{name}={value}\n")), "{name}");
    }
    assert!(compose.contains("INSTANCE_TYPE: ${INSTANCE_TYPE:-}\n"));
}

#[test]
fn environment_names_existing_variables_only() {
    let reference = read("docs/reference/environment.md");
    let own = [
        "DALSTON_DATABASE",
        "DALSTON_API_KEY",
        "DALSTON_GATEWAY_PORT",
        "DALSTON_GRAFANA_URL",
    ];
    let stack = Stack::load();
    for (service, found) in stack.services() {
        for name in names(&found["environment"]) {
            let ours = name.starts_with("DALSTON_") || name.starts_with("OTEL_");
            let exists = reference.contains(&format!("`{name}`")) || own.contains(&name.as_str());
            assert!(!ours || exists, "{service}: {name}");
        }
    }
}

#[test]
fn volumes_are_named_and_files_exist() {
    let stack = Stack::load();
    let named = names(&stack.compose["volumes"]);
    for (service, found) in stack.services() {
        for volume in list(&found["volumes"]) {
            let source = text(&volume).split(':').next().unwrap();
            match source.strip_prefix("./") {
                Some(directory) => assert!(
                    crate::files::workspace().join(STACK).join(directory).is_dir(),
                    "{service}: {source}"
                ),
                // Directories of the machine, for cAdvisor.
                None if source.starts_with('/') => assert_eq!(service, "cadvisor"),
                None => assert!(named.contains(&source.to_owned()), "{service}: {source}"),
            }
        }
    }
}

#[test]
fn scraped_services_exist_and_their_pushes_are_dropped() {
    let stack = Stack::load();
    let relabel = &stack.job("otel-collector")["metric_relabel_configs"][0];
    assert_eq!(relabel["action"], "drop");
    let dropped = text(&relabel["regex"]);
    for job in list(&stack.prometheus["scrape_configs"]) {
        let name = text(&job["job_name"]).trim_end_matches("-self").to_owned();
        let service = stack.service(&name);
        let pushes = &service["environment"]["OTEL_SERVICE_NAME"];
        if let Some(short) = pushes.as_str().and_then(|name| name.strip_prefix("dalston-")) {
            assert!(
                dropped.contains(short),
                "{name} is scraped and pushes as {pushes:?}"
            );
        }
    }
}
