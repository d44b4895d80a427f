use super::{Parsed, Text, Variable};

variables! {
    /// Of every service that has a use for them.
    pub group SERVICES = "Services of the platform";

    /// The Redis server with queues, events and registry:
    /// `redis://[[user]:password@]host[:port][/database]`, or `rediss://` for TLS.
    pub static REDIS_URL: Variable<String> =
        Variable::new(&["REDIS_URL"], &Text("redis://, rediss:// or unix:// and a host or path"))
            .default("redis://localhost:6379")
            .secret();

    /// The port of `/metrics` and `/health`. A worker also serves `/v1/capabilities`,
    /// `/debug/status`, a status page and the routes for transcription there. 0: any free port.
    pub static DALSTON_METRICS_PORT: Variable<u16> =
        Variable::new(&["DALSTON_METRICS_PORT"], &Parsed("a port from 0 to 65535")).default("9100");

    /// The environment that the registry shows. With any value but `aws`, the machine is not
    /// examined for EC2.
    pub static DALSTON_DEPLOY_ENV: Variable<String> =
        Variable::new(&["DALSTON_DEPLOY_ENV"], &Text("a name, such as aws")).default_described("`local`; `aws` on EC2");

    /// The hardware: the field `instance_type` of every log line, the label of metrics, and
    /// `host.type` of spans, which is absent where it is not known.
    pub static INSTANCE_TYPE: Variable<String> =
        Variable::new(&["INSTANCE_TYPE"], &Text("a name, such as g5.xlarge"))
            .default_described("the detected one, else `unknown`");

    /// The name of the host, where the system does not tell it.
    pub static HOSTNAME: Variable<String> =
        Variable::new(&["HOSTNAME"], &Text("a name")).default_described("the system's");
}
