crate::label! {
    /// How a task ended.
    pub enum Outcome = "status" {
        Success => "success",
        Failure => "failure",
    }
}
