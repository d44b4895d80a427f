crate::label! {
    /// Whether a task succeeded.
    pub enum Status = "status" {
        Success => "success",
        Failure => "failure",
    }
}
