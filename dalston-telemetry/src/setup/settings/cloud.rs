use super::{OneOf, Switch, Text, Variable};

variables! {
    /// Read by the command `run`, by `transcribe` with `OTEL_ENABLED=true`, and by programs that
    /// call `Cloud::detect`.
    pub group CLOUD = "Amazon's cloud";

    /// `true`: the instance metadata service is never asked.
    pub(crate) static AWS_EC2_METADATA_DISABLED: Variable<bool> =
        Variable::new(&["AWS_EC2_METADATA_DISABLED"], &Switch).default("false");

    /// Where that service is. It is asked even if the machine does not look like EC2.
    pub(crate) static AWS_EC2_METADATA_SERVICE_ENDPOINT: Variable<String> =
        Variable::new(&["AWS_EC2_METADATA_SERVICE_ENDPOINT"], &HTTP_URL)
            .default_described("`http://169.254.169.254`")
            .secret();

    /// The family of its default address. `IPv6`: it is at `http://[fd00:ec2::254]`.
    pub(crate) static AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE: Variable<AddressFamily> = Variable::new(
        &["AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE"],
        &OneOf(&[("IPv4", AddressFamily::V4), ("IPv6", AddressFamily::V6)]),
    )
    .default("IPv4");

    /// `true`: version 1 is not used even where version 2 is refused.
    pub(crate) static AWS_EC2_METADATA_V1_DISABLED: Variable<bool> =
        Variable::new(&["AWS_EC2_METADATA_V1_DISABLED"], &Switch).default("false");

    /// The metadata service of a task on ECS. Its presence tells that this is ECS.
    pub(crate) static ECS_CONTAINER_METADATA_URI_V4: Variable<String> =
        Variable::new(&["ECS_CONTAINER_METADATA_URI_V4"], &HTTP_URL)
            .default_described(SET_BY_AMAZON)
            .secret();

    /// `AWS_ECS_EC2`: this is ECS on instances.
    pub(crate) static AWS_EXECUTION_ENV: Variable<String> =
        Variable::new(&["AWS_EXECUTION_ENV"], &Text("a name")).default_described(SET_BY_AMAZON);

    /// The function. Its presence tells that this is Lambda.
    pub(crate) static AWS_LAMBDA_FUNCTION_NAME: Variable<String> =
        Variable::new(&["AWS_LAMBDA_FUNCTION_NAME"], &Text("a name")).default_described(SET_BY_AMAZON);

    /// The version of the function.
    pub(crate) static AWS_LAMBDA_FUNCTION_VERSION: Variable<String> =
        Variable::new(&["AWS_LAMBDA_FUNCTION_VERSION"], &Text("a version")).default_described(SET_BY_AMAZON);

    /// The region of a function or a task.
    pub(crate) static AWS_REGION: Variable<String> =
        Variable::new(&["AWS_REGION"], &Text("a region")).default_described(SET_BY_AMAZON);

    /// The API server of a cluster. Its presence tells that this is Kubernetes.
    pub(crate) static KUBERNETES_SERVICE_HOST: Variable<String> =
        Variable::new(&["KUBERNETES_SERVICE_HOST"], &Text("a host")).default_described("set by Kubernetes");
}

const HTTP_URL: Text = Text("an http:// URL such as http://169.254.169.254");

const SET_BY_AMAZON: &str = "set by Amazon";

/// The values of [`AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AddressFamily {
    V4,
    V6,
}
