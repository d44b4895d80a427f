//! Calls about tasks in hand. What several tasks want of the server at the same time goes into one script call.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use redis::{Cmd, RedisError, RedisResult, Value};
use tokio::sync::{mpsc, oneshot};

use super::scripts::CALLS;
use super::server::RedisServer;
use crate::broker::{Claim, Consumer};
use crate::protocol::{TaskEvent, keys};

/// How many calls go into one script call. Nobody else is served meanwhile.
const MOST: usize = 64;
/// How many calls may wait to be sent. Each task in hand has at most a few.
const WAITING: usize = 1024;

/// What is asked of the server about one task.
#[derive(Debug)]
pub(super) enum Operation {
    Renew,
    Release {
        nobody: &'static str,
        idle_ms: u64,
    },
    IsCancelled,
    Lookup,
    Begin(TaskEvent),
    Started(TaskEvent),
    Finish {
        event: Option<TaskEvent>,
        /// Ids and references.
        artifacts: Vec<(String, String)>,
        /// The list of the ids.
        ids: String,
    },
}

/// Sends calls.
#[derive(Debug, Default)]
pub(super) struct Caller {
    queue: Mutex<Option<mpsc::Sender<Call>>>,
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// What the script said of this call.
    #[error("{0}")]
    Refused(String),
    #[error("the connection was given up before there was an answer")]
    GivenUp,
}

struct Call {
    claim: Claim,
    operation: Operation,
    answer: oneshot::Sender<Result<Value, CallError>>,
}

impl Caller {
    pub(super) async fn call(
        &self,
        server: &RedisServer,
        claim: &Claim,
        operation: Operation,
    ) -> Result<Value, CallError> {
        let (answer, answered) = oneshot::channel();
        let call = Call {
            claim: claim.clone(),
            operation,
            answer,
        };
        let queue = self.queue(server);
        queue.send(call).await.map_err(|_| CallError::GivenUp)?;
        answered.await.map_err(|_| CallError::GivenUp)?
    }

    /// That of the sending task, which is started here if there is none: before the first call, or when the runtime in
    /// which it ran is gone.
    fn queue(&self, server: &RedisServer) -> mpsc::Sender<Call> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        match &*queue {
            Some(sender) if !sender.is_closed() => sender.clone(),
            _ => {
                let (sender, calls) = mpsc::channel(WAITING);
                tokio::spawn(send_all(server.clone(), calls));
                queue.insert(sender).clone()
            }
        }
    }
}

async fn send_all(server: RedisServer, mut calls: mpsc::Receiver<Call>) {
    let mut batch = Vec::with_capacity(MOST);
    while calls.recv_many(&mut batch, MOST).await > 0 {
        // Tasks that are about to run have something to ask, too.
        tokio::task::yield_now().await;
        while batch.len() < MOST
            && let Ok(call) = calls.try_recv()
        {
            batch.push(call);
        }
        batch.retain(|call| !call.answer.is_closed());
        while let Some(first) = batch.first() {
            // A script call is about the tasks of one consumer; there is only one, except in tests.
            let consumer = first.claim.consumer.clone();
            let others = batch.iter().position(|call| call.claim.consumer != consumer);
            let ours: Vec<Call> = batch.drain(..others.unwrap_or(batch.len())).collect();
            let server = server.clone();
            tokio::spawn(async move { send(&server, &consumer, ours).await });
        }
    }
}

async fn send(server: &RedisServer, consumer: &Consumer, mut calls: Vec<Call>) {
    let command = command(consumer, &calls);
    let answer = tokio::select! {
        answer = invoke(server, &command) => answer,
        // What waits for a server that is away must not pile up, nor be sent when nobody wants it any more.
        () = given_up(&mut calls) => return,
    };
    let answers = match answer {
        Ok(Value::Array(answers)) if answers.len() == calls.len() => answers,
        Ok(_) => {
            for call in calls {
                let short = "the server did not answer every call".to_owned();
                let _ = call.answer.send(Err(CallError::Refused(short)));
            }
            return;
        }
        Err(error) => {
            for call in calls {
                let _ = call.answer.send(Err(error.clone().into()));
            }
            return;
        }
    };
    let answers: Vec<_> = answers.into_iter().map(refused).collect();
    // The script has caught it, so the connection did not hear of it. What is refused to one is refused to all.
    let refusal = answers.iter().find_map(|answer| match answer {
        Err(CallError::Refused(text)) => text.split(' ').next(),
        _ => None,
    });
    refusal.into_iter().for_each(|code| server.heard(code));
    for (call, answer) in calls.into_iter().zip(answers) {
        let _ = call.answer.send(answer);
    }
}

/// Returns when nobody waits for an answer to any of the calls.
async fn given_up(calls: &mut [Call]) {
    for call in calls {
        call.answer.closed().await;
    }
}

/// The server knows a script by its hash, from the first time that it got it to its next start.
async fn invoke(server: &RedisServer, command: &Cmd) -> RedisResult<Value> {
    let mut connection = server.shared();
    match command.query_async(&mut connection).await {
        Err(error) if error.code() == Some("NOSCRIPT") => {
            CALLS.load_async(&mut connection).await?;
            command.query_async(&mut connection).await
        }
        other => other,
    }
}

fn refused(answer: Value) -> Result<Value, CallError> {
    match answer {
        Value::Array(mut parts) if parts.first() == Some(&Value::BulkString(b"error".to_vec())) => {
            let text = match parts.pop() {
                Some(Value::BulkString(text)) => String::from_utf8_lossy(&text).into_owned(),
                other => format!("{other:?}"),
            };
            Err(CallError::Refused(text))
        }
        answer => Ok(answer),
    }
}

fn command(consumer: &Consumer, calls: &[Call]) -> Cmd {
    const ARGUMENTS: usize = 12;
    const BYTES: usize = 1024;
    let mut command = Cmd::with_capacity(ARGUMENTS * (calls.len() + 1), BYTES * (calls.len() + 1));
    command.arg("EVALSHA");
    let further: usize = calls.iter().map(|call| call.operation.keys()).sum();
    command.arg(CALLS.get_hash()).arg(3 + further);
    command
        .arg(keys::task_stream(&consumer.engine_id))
        .arg(keys::EVENT_STREAM)
        .arg(keys::WAITING_TASKS);
    for call in calls {
        call.add_keys(&mut command);
    }
    command.arg(keys::TASK_GROUP).arg(&consumer.instance);
    command.arg(keys::EVENT_STREAM_MAX_LEN).arg(keys::EVENT_CHANNEL);
    command.arg(&keys::WAIT_MARKERS);
    for call in calls {
        call.add_arguments(&mut command);
    }
    command
}

impl Operation {
    /// How many keys it has of its own.
    fn keys(&self) -> usize {
        match self {
            Self::Renew | Self::Release { .. } | Self::Started(_) => 0,
            Self::IsCancelled => 1,
            Self::Lookup | Self::Begin(_) => 2,
            Self::Finish { artifacts, .. } if artifacts.is_empty() => 0,
            Self::Finish { .. } => 2,
        }
    }
}

impl Call {
    fn add_keys(&self, command: &mut Cmd) {
        let Claim { job_id, task_id, .. } = &self.claim;
        match &self.operation {
            Operation::Renew | Operation::Release { .. } | Operation::Started(_) => {}
            Operation::IsCancelled => {
                command.arg(keys::job_cancelled(job_id));
            }
            Operation::Lookup | Operation::Begin(_) => {
                command.arg(keys::job_cancelled(job_id)).arg(keys::task(task_id));
            }
            Operation::Finish { artifacts, .. } => {
                if !artifacts.is_empty() {
                    command.arg(keys::job_artifacts(job_id)).arg(keys::task(task_id));
                }
            }
        }
    }

    fn add_arguments(&self, command: &mut Cmd) {
        let name = match &self.operation {
            Operation::Renew => "renew",
            Operation::Release { .. } => "release",
            Operation::IsCancelled => "cancelled",
            Operation::Lookup => "lookup",
            Operation::Begin(_) => "begin",
            Operation::Started(_) => "started",
            Operation::Finish { .. } => "finish",
        };
        command
            .arg(name)
            .arg(&self.claim.message_id)
            .arg(self.claim.delivery_count);
        match &self.operation {
            Operation::Renew | Operation::IsCancelled => {}
            Operation::Release { nobody, idle_ms } => {
                command.arg(*nobody).arg(*idle_ms);
            }
            Operation::Lookup => {
                command.arg(&self.claim.task_id);
            }
            Operation::Begin(event) => {
                command.arg(&self.claim.task_id).arg(event.kind.as_str());
                command
                    .arg(event.timestamp.to_string())
                    .arg(event.payload())
                    .arg(event.published());
            }
            Operation::Started(event) => add_event(command, event),
            Operation::Finish {
                event,
                artifacts,
                ids,
            } => {
                match event {
                    Some(event) => add_event(command, event),
                    None => {
                        command.arg(&["", "", "", "", ""]);
                    }
                }
                command.arg(artifacts.len());
                if !artifacts.is_empty() {
                    command.arg(ids);
                }
                for (id, reference) in artifacts {
                    command.arg(id).arg(reference);
                }
            }
        }
    }
}

fn add_event(command: &mut Cmd, event: &TaskEvent) {
    command
        .arg(event.kind.as_str())
        .arg(event.timestamp.to_string())
        .arg(event.payload())
        .arg(event.trace_context_field().unwrap_or_default())
        .arg(event.published());
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("claim", &self.claim)
            .field("operation", &self.operation)
            .finish_non_exhaustive()
    }
}
