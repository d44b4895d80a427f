//! Calls about tasks in hand. What several tasks want of the server at the same time goes into one script call.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::{Cmd, RedisError, RedisResult, Value};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tracing::instrument::WithSubscriber;

use super::answers::{self, Answer, Malformed};
use super::scripts::CALLS;
use super::server::RedisServer;
use crate::broker::{Claim, Consumer};
use crate::protocol::{Timestamp, keys};

/// How many calls go into one script call. Nobody else is served meanwhile.
const MOST: usize = 64;
/// How many calls may wait to be sent. Each task in hand has at most a few.
const WAITING: usize = 1024;

/// How long calls gather while a script call is under way. A server that takes longer is away, and then each may find out by itself.
const PATIENCE: Duration = Duration::from_millis(100);

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
    Started(Event),
    Finish {
        event: Option<Event>,
        /// Ids and references.
        artifacts: Vec<(String, String)>,
        /// The list of the ids.
        ids: String,
    },
}

/// An event without its time, which is that of the call.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) kind: &'static str,
    pub(super) payload: String,
    /// The JSON of the trace context, or nothing.
    pub(super) context: String,
}

/// Sends calls.
#[derive(Debug)]
pub(super) struct Caller {
    queue: Mutex<Option<Queue>>,
    /// One script call is under way at a time. Others gather meanwhile, but not behind a server that is away.
    line: Arc<Semaphore>,
    /// How many tasks were handed out that nobody looked up yet. Whoever has them does so at once.
    expected: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Queue {
    sender: mpsc::Sender<Waiting>,
    /// That of the last call.
    consumer: Arc<Consumer>,
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// What the script said of this call.
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("the connection was given up before there was an answer")]
    GivenUp,
}

impl CallError {
    /// What the server said, if it said no. Then it did nothing.
    pub(super) fn code(&self) -> Option<&str> {
        match self {
            Self::Redis(error) => error.code(),
            Self::Refused(text) => Some(code(text)),
            Self::Malformed(_) | Self::GivenUp => None,
        }
    }

    pub(super) fn is_out_of_memory(&self) -> bool {
        self.code() == Some("OOM")
    }
}

struct Call {
    consumer: Arc<Consumer>,
    message_id: String,
    delivery_count: u32,
    task_id: String,
    job_id: String,
    operation: Operation,
}

/// A call of one who waits for the answer.
struct Waiting {
    call: Call,
    answer: oneshot::Sender<Answered>,
}

type Answered = Result<Answer, CallError>;

impl Caller {
    pub(super) async fn call(&self, server: &RedisServer, claim: &Claim, operation: Operation) -> Answered {
        if matches!(operation, Operation::Lookup) {
            let less = |expected: usize| expected.checked_sub(1);
            let _ = self.expected.fetch_update(Relaxed, Relaxed, less);
        }
        let (queue, consumer) = self.queue(server, &claim.consumer);
        let call = Call {
            consumer,
            message_id: claim.message_id.clone(),
            delivery_count: claim.delivery_count,
            task_id: claim.task_id.clone(),
            job_id: claim.job_id.clone(),
            operation,
        };
        self.send(server, &queue, call).await
    }

    async fn send(&self, server: &RedisServer, queue: &mpsc::Sender<Waiting>, call: Call) -> Answered {
        // Alone it goes by the shortest way: each detour through the runtime may wake another thread.
        if self.expected.load(Relaxed) == 0
            && let Ok(_permit) = self.line.try_acquire()
        {
            let answers = ask(server, std::slice::from_ref(&call)).await;
            return answers.into_iter().next().unwrap_or(Err(CallError::GivenUp));
        }
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting { call, answer };
        queue.send(waiting).await.map_err(|_| CallError::GivenUp)?;
        answered.await.map_err(|_| CallError::GivenUp)?
    }

    /// So many tasks were handed out, and will be looked up now.
    pub(super) fn expect(&self, tasks: usize) {
        // A task that is never looked up must not count for ever.
        self.expected.store(tasks, Relaxed);
    }

    /// That of the sending task, which is started here if there is none: before the first call, or when the runtime in
    /// which it ran is gone.
    fn queue(&self, server: &RedisServer, consumer: &Consumer) -> (mpsc::Sender<Waiting>, Arc<Consumer>) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = match &mut *queue {
            Some(queue) if !queue.sender.is_closed() => queue,
            none => {
                let (sender, calls) = mpsc::channel(WAITING);
                let (line, expected) = (Arc::clone(&self.line), Arc::clone(&self.expected));
                let sending = send_all(server.clone(), calls, line, expected);
                tokio::spawn(sending.with_current_subscriber());
                let consumer = Arc::new(consumer.clone());
                none.insert(Queue { sender, consumer })
            }
        };
        if *queue.consumer != *consumer {
            queue.consumer = Arc::new(consumer.clone());
        }
        (queue.sender.clone(), Arc::clone(&queue.consumer))
    }
}

impl Default for Caller {
    fn default() -> Self {
        Self {
            queue: Mutex::default(),
            line: Arc::new(Semaphore::new(1)),
            expected: Arc::default(),
        }
    }
}

/// Sends everything by itself: to start a task of the runtime for each script call would wake another thread for it.
async fn send_all(
    server: RedisServer,
    mut calls: mpsc::Receiver<Waiting>,
    line: Arc<Semaphore>,
    expected: Arc<AtomicUsize>,
) {
    let mut under_way = FuturesUnordered::new();
    let mut batch = Vec::with_capacity(MOST);
    loop {
        tokio::select! {
            biased;
            Some(()) = under_way.next() => continue,
            received = calls.recv_many(&mut batch, MOST) => if received == 0 {
                break;
            }
        }
        if expected.load(Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
        // What comes up while the server is at work goes along.
        let mut permit = pin!(timeout(PATIENCE, Arc::clone(&line).acquire_owned()));
        let permit = loop {
            tokio::select! {
                biased;
                Some(()) = under_way.next() => {}
                permit = &mut permit => break Arc::new(permit.ok().and_then(Result::ok)),
            }
        };
        while batch.len() < MOST
            && let Ok(call) = calls.try_recv()
        {
            batch.push(call);
        }
        batch.retain(|waiting| !waiting.answer.is_closed());
        while let Some(first) = batch.first() {
            // A script call is about the tasks of one consumer; there is only one, except in tests.
            let consumer = Arc::clone(&first.call.consumer);
            let others = batch.iter().position(|waiting| waiting.call.consumer != consumer);
            let ours: Vec<Waiting> = batch.drain(..others.unwrap_or(batch.len())).collect();
            let (server, permit) = (&server, Arc::clone(&permit));
            under_way.push(async move {
                send(server, ours).await;
                drop(permit);
            });
        }
    }
    while under_way.next().await.is_some() {}
}

async fn send(server: &RedisServer, waiting: Vec<Waiting>) {
    let (calls, mut waiting): (Vec<_>, Vec<_>) = waiting
        .into_iter()
        .map(|Waiting { call, answer }| (call, answer))
        .unzip();
    let answers = tokio::select! {
        answers = ask(server, &calls) => answers,
        // What waits for a server that is away must not pile up, nor be sent when nobody wants it any more.
        () = given_up(&mut waiting) => return,
    };
    for (waiting, answer) in waiting.into_iter().zip(answers) {
        let _ = waiting.send(answer);
    }
}

/// Makes calls of one consumer, and returns an answer for each.
async fn ask(server: &RedisServer, calls: &[Call]) -> Vec<Answered> {
    let answers = match invoke(server, &command(calls)).await {
        Ok(Value::BulkString(text)) => answers::read(calls.iter().map(|call| &*call.task_id), &text),
        Ok(_) => Err(Malformed),
        Err(error) => return calls.iter().map(|_| Err(error.clone().into())).collect(),
    };
    let Ok(answers) = answers else {
        return calls.iter().map(|_| Err(Malformed.into())).collect();
    };
    // The script has caught it, so the connection did not hear of it. What is refused to one is refused to all.
    let refusal = answers.iter().find_map(|answer| match answer {
        Answer::Refused(text) => Some(code(text)),
        _ => None,
    });
    refusal.into_iter().for_each(|code| server.heard(code));
    let answers = answers.into_iter().map(|answer| match answer {
        Answer::Refused(text) => Err(CallError::Refused(text)),
        answer => Ok(answer),
    });
    answers.collect()
}

/// The word that an error of the server begins with. Up to Redis 6.2 what a script says of it has more before that:
/// `@user_script: 7: -READONLY You can't write`.
fn code(refusal: &str) -> &str {
    let of_script = refusal.strip_prefix("@user_script");
    let text = of_script
        .and_then(|text| text.split_once(": -"))
        .map_or(refusal, |(_, text)| text);
    let text = text.strip_prefix('-').unwrap_or(text);
    text.split_whitespace().next().unwrap_or_default()
}

/// Returns when nobody waits for any of the answers.
async fn given_up(waiting: &mut [oneshot::Sender<Answered>]) {
    for waiting in waiting {
        waiting.closed().await;
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

/// The arguments are described at the script.
fn command(calls: &[Call]) -> Cmd {
    const ARGUMENTS: usize = 10;
    const BYTES: usize = 384;
    let mut command = Cmd::with_capacity(ARGUMENTS * (calls.len() + 2), BYTES * (calls.len() + 2));
    command.arg("EVALSHA");
    let lookups = || {
        calls
            .iter()
            .filter(|call| matches!(call.operation, Operation::Lookup))
    };
    let further: usize = calls.iter().map(|call| call.operation.keys()).sum();
    command.arg(CALLS.get_hash()).arg(3 + further);
    let (engine_id, instance) = calls
        .first()
        .map(|call| (&*call.consumer.engine_id, &*call.consumer.instance))
        .unwrap_or_default();
    command
        .arg(keys::task_stream(engine_id))
        .arg(keys::EVENT_STREAM)
        .arg(keys::WAITING_TASKS);
    for call in lookups() {
        command.arg(keys::job_cancelled(&call.job_id));
    }
    for call in lookups() {
        command.arg(keys::task(&call.task_id));
    }
    for call in calls {
        call.add_keys(&mut command);
    }
    command.arg(keys::TASK_GROUP).arg(instance);
    command.arg(keys::EVENT_STREAM_MAX_LEN).arg(keys::EVENT_CHANNEL);
    command.arg(Timestamp::now().to_string());
    command.arg(&keys::WAIT_MARKERS);
    command.arg(lookups().count());
    let (first, last, most) = range(calls);
    command.arg(first).arg(last).arg(most);
    for call in calls {
        call.add_arguments(&mut command);
    }
    command
}

/// The smallest and the largest message id of those calls that want to know whose they are, and how many entries of ours
/// between them are worth a look.
fn range(calls: &[Call]) -> (&str, &str, usize) {
    let position = |id: &str| {
        let (milliseconds, number) = id.split_once('-')?;
        Some((milliseconds.parse::<u64>().ok()?, number.parse::<u64>().ok()?))
    };
    let owned = calls
        .iter()
        .filter(|call| !matches!(call.operation, Operation::IsCancelled));
    let ids = owned.filter_map(|call| Some((position(&call.message_id)?, &*call.message_id)));
    let (mut first, mut last, mut count) = (None, None, 0);
    for id in ids {
        first = Some(first.map_or(id, |first| id.min(first)));
        last = Some(last.map_or(id, |last| id.max(last)));
        count += 1;
    }
    match (first, last) {
        // More than that cost more than to look for each.
        (Some((_, first)), Some((_, last))) => (first, last, if first == last { 1 } else { 2 * count }),
        _ => ("", "", 0),
    }
}

impl Operation {
    /// How many keys it has of its own.
    fn keys(&self) -> usize {
        match self {
            Self::Renew | Self::Release { .. } | Self::Started(_) => 0,
            Self::IsCancelled => 1,
            Self::Lookup => 2,
            Self::Finish { artifacts, .. } if artifacts.is_empty() => 0,
            Self::Finish { .. } => 2,
        }
    }
}

impl Call {
    /// Those of a lookup have their place apart.
    fn add_keys(&self, command: &mut Cmd) {
        match &self.operation {
            Operation::IsCancelled => {
                command.arg(keys::job_cancelled(&self.job_id));
            }
            Operation::Finish { artifacts, .. } if !artifacts.is_empty() => {
                command
                    .arg(keys::job_artifacts(&self.job_id))
                    .arg(keys::task(&self.task_id));
            }
            _ => {}
        }
    }

    fn add_arguments(&self, command: &mut Cmd) {
        let name = match &self.operation {
            Operation::Renew => "renew",
            Operation::Release { .. } => "release",
            Operation::IsCancelled => "cancelled",
            Operation::Lookup => "lookup",
            Operation::Started(_) => "started",
            Operation::Finish { .. } => "finish",
        };
        command.arg(name).arg(&self.message_id).arg(self.delivery_count);
        match &self.operation {
            Operation::Renew | Operation::IsCancelled => {}
            Operation::Release { nobody, idle_ms } => {
                command.arg(*nobody).arg(*idle_ms);
            }
            Operation::Lookup => {
                command.arg(&self.task_id);
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
                        command.arg(&["", "", ""]);
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

fn add_event(command: &mut Cmd, event: &Event) {
    command
        .arg(event.kind)
        .arg(fields(&event.payload))
        .arg(&event.context);
}

/// An object without the brace that opens it.
fn fields(payload: &str) -> &str {
    payload.strip_prefix('{').unwrap_or(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_of_an_error_is_found_behind_what_older_servers_put_before_it() {
        for (text, expected) in [
            (
                "READONLY You can't write against a read only replica.",
                "READONLY",
            ),
            (
                "@user_script: 7: -READONLY You can't write against a read only replica.",
                "READONLY",
            ),
            (
                "@user_script:12: -OOM command not allowed when used memory > 'maxmemory'.\r\n",
                "OOM",
            ),
            ("-NOREPLICAS Not enough good replicas to write.", "NOREPLICAS"),
            ("@user_script: 7: attempt to index a nil value", "@user_script:"),
            ("", ""),
        ] {
            assert_eq!(code(text), expected, "{text}");
        }
    }
}
