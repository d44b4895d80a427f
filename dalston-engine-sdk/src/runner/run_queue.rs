//! The run queue: tasks wait here for an inference thread.
//!
//! Tasks get threads by their [`Class`], and within a class first come, first served. A session has
//! one task of a class at most, so sessions take turns. A task whose model an idle thread holds
//! goes to that thread. Any other task goes to the idle thread with the fewest models, so that no
//! thread gives up a model while another one has room.
//!
//! A thread is assigned to a task before the task begins: the control loop admits the task in
//! between, while the thread waits. A task that is dropped in that time gives its thread back.
//!
//! An engine that takes batches gets several tasks at once. They are admitted one by one, and the
//! thread begins when each of them is admitted or dropped.

mod entry;

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dalston_telemetry::services::engine::BatchDispatch;
use tokio::sync::oneshot;
use tokio::time::Instant;

pub(super) use self::entry::{AssignedThread, BegunTask, QueueEntry};
use super::class::Class;
use super::forming::{Candidate, form};
use super::run_lock::BatchGuard;
use crate::batch::Batching;
use crate::model_id::ModelId;

/// Tasks that wait for a thread, and the threads that process them. `W` is the work that a thread
/// is given.
pub(super) struct RunQueue<W> {
    state: Mutex<State<W>>,
}

/// What a thread gets at once: one task, or a batch.
pub(super) struct Dispatched<W> {
    pub(super) works: Vec<W>,
    /// Why it has no more tasks.
    pub(super) reason: BatchDispatch,
    /// How long the thread was idle while the first task waited.
    pub(super) waited: Duration,
}

/// As many tasks of realtime sessions begin, one after the other, while a batch task waits.
const LIVE_IN_A_ROW: u32 = 4;

struct State<W> {
    limits: Batching,
    /// Tasks without a thread, most urgent first, then oldest first. While a thread is idle, the
    /// first one waits for a full batch.
    waiting: VecDeque<Waiting>,
    /// How many tasks of sessions have begun since a batch task waits.
    live_in_a_row: u32,
    threads: Vec<Thread<W>>,
    last_task: u64,
    /// Counts how often a thread became idle.
    last_idle: u64,
    closed: bool,
}

struct Waiting {
    task: u64,
    candidate: Candidate,
    assigned: oneshot::Sender<Assignment>,
}

/// The thread of a task.
struct Assignment {
    handle: Arc<ThreadHandle>,
    /// How long the task waited for it.
    waited: Duration,
    group: Arc<Group>,
}

/// The tasks that get a thread together.
struct Group {
    /// The number of its first task.
    number: u64,
    guard: BatchGuard,
}

struct Thread<W> {
    handle: Arc<ThreadHandle>,
    /// The models that it held when it became idle.
    loaded: Arc<[ModelId]>,
    activity: Activity<W>,
}

enum Activity<W> {
    Idle {
        since: IdleSince,
        /// Models that were not used for their time to live, seen from then, must go.
        sweep: Option<Instant>,
    },
    /// Tasks have the thread.
    Assigned {
        since: IdleSince,
        group: u64,
        /// Those that were neither admitted nor dropped yet.
        undecided: Vec<u64>,
        admitted: Vec<(u64, W)>,
        reason: BatchDispatch,
        waited: Duration,
    },
    /// The work was handed over, and the thread has not taken it yet.
    Ready {
        group: u64,
        tasks: Vec<u64>,
        dispatched: Dispatched<W>,
    },
    /// The thread processes the tasks of this group, or sweeps its models.
    Busy {
        group: Option<u64>,
        /// Those that are not over.
        tasks: Vec<u64>,
    },
}

impl<W> Activity<W> {
    fn busy() -> Self {
        Self::Busy {
            group: None,
            tasks: Vec::new(),
        }
    }

    /// The tasks of this group that the thread has begun or is about to begin, and that are not
    /// over.
    fn open_tasks(&mut self, of: u64) -> Option<&mut Vec<u64>> {
        match self {
            Self::Ready { group, tasks, .. } if *group == of => Some(tasks),
            Self::Busy { group, tasks } if *group == Some(of) => Some(tasks),
            _ => None,
        }
    }
}

/// Since when a thread is idle.
#[derive(Debug, Clone, Copy)]
struct IdleSince {
    /// A higher number is a later time.
    number: u64,
    at: Instant,
}

/// The identity of an inference thread.
pub(super) struct ThreadHandle {
    /// The number of its slot.
    pub(super) index: usize,
    wake_up: Condvar,
}

impl ThreadHandle {
    pub(super) fn new(index: usize) -> Arc<Self> {
        Arc::new(Self {
            index,
            wake_up: Condvar::new(),
        })
    }
}

/// What became of the thread of a task that is given up.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum GivenUp {
    /// It has come back.
    Returned,
    /// It works on other tasks of the batch, too, which are not over.
    HasOthers,
    /// It is given up, and ends by itself when it comes back.
    Removed,
}

/// What an inference thread must do.
pub(super) enum Next<W> {
    /// Process tasks.
    Work(Dispatched<W>),
    /// Drop the models that were not used for their time to live, seen from then.
    Sweep(Instant),
    /// End.
    End,
}

impl<W> RunQueue<W> {
    /// A queue without threads, whose batches have these limits.
    pub(super) fn new(limits: Batching) -> Self {
        Self {
            state: Mutex::new(State {
                limits,
                waiting: VecDeque::new(),
                live_in_a_row: 0,
                threads: Vec::new(),
                last_task: 0,
                last_idle: 0,
                closed: false,
            }),
        }
    }

    /// Adds a task at the end of its class.
    pub(super) fn enqueue(self: &Arc<Self>, candidate: Candidate) -> QueueEntry<W> {
        let (assigned, thread) = oneshot::channel();
        let ripe_at = candidate.ripe_at;
        let mut state = self.state();
        state.last_task += 1;
        let task = state.last_task;
        if !state.closed {
            let class = candidate.class;
            let place = state
                .waiting
                .partition_point(|other| other.candidate.class <= class);
            let waiting = Waiting {
                task,
                candidate,
                assigned,
            };
            state.waiting.insert(place, waiting);
            state.assign();
        }
        drop(state);
        QueueEntry {
            queue: Arc::clone(self),
            task,
            ripe_at,
            thread: Some(thread),
        }
    }

    /// Reports that a thread is idle and holds these models: a new one, or one that is done with
    /// its task.
    ///
    /// A thread calls this before the end of its task is known anywhere. A task that follows at
    /// once then finds the thread that holds its model.
    pub(super) fn idle(&self, handle: &Arc<ThreadHandle>, loaded: &Arc<[ModelId]>) {
        let mut state = self.state();
        state.last_idle += 1;
        let since = IdleSince {
            number: state.last_idle,
            at: Instant::now(),
        };
        let activity = Activity::Idle { since, sweep: None };
        match state.thread(handle) {
            Some(thread) => {
                thread.loaded = Arc::clone(loaded);
                thread.activity = activity;
            }
            None => return,
        }
        state.assign();
    }

    /// Adds a thread that is busy until it reports that it is idle.
    pub(super) fn add(&self, handle: &Arc<ThreadHandle>) {
        self.state().threads.push(Thread {
            handle: Arc::clone(handle),
            loaded: Arc::new([]),
            activity: Activity::busy(),
        });
    }

    /// Removes a thread that has ended, or ends as soon as it comes back.
    pub(super) fn remove(&self, handle: &Arc<ThreadHandle>) {
        self.state().remove(handle);
    }

    /// Waits until there is something to do for a thread.
    pub(super) fn next(&self, handle: &Arc<ThreadHandle>) -> Next<W> {
        let mut state = self.state();
        loop {
            if let Some(next) = state.next(handle) {
                return next;
            }
            state = handle.wake_up.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets the idle threads drop the models that were not used for their time to live, seen from
    /// `now`.
    pub(super) fn sweep(&self, now: Instant) {
        for thread in &mut self.state().threads {
            if let Activity::Idle { sweep, .. } = &mut thread.activity {
                *sweep = Some(now);
                thread.handle.wake_up.notify_one();
            }
        }
    }

    /// Notes that a task is over, while its thread may go on with others of its batch.
    pub(super) fn over(&self, begun: &BegunTask) {
        if let Some(thread) = self.state().thread(&begun.thread)
            && let Some(tasks) = thread.activity.open_tasks(begun.group)
        {
            tasks.retain(|task| *task != begun.task);
        }
    }

    /// Gives up the thread of a task, unless it works on other tasks, too.
    pub(super) fn give_up(&self, begun: &BegunTask) -> GivenUp {
        let mut state = self.state();
        let tasks = state
            .thread(&begun.thread)
            .and_then(|thread| thread.activity.open_tasks(begun.group));
        let Some(tasks) = tasks else {
            return GivenUp::Returned;
        };
        tasks.retain(|task| *task != begun.task);
        if !tasks.is_empty() {
            return GivenUp::HasOthers;
        }
        state.remove(&begun.thread);
        GivenUp::Removed
    }

    /// Lets the idle threads end, and the others when they are done. Tasks without a thread get
    /// none any more.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.waiting.clear();
        for thread in &state.threads {
            thread.handle.wake_up.notify_one();
        }
    }

    /// Hands the work of an admitted task to its thread.
    fn begin(&self, handle: &Arc<ThreadHandle>, task: u64, work: W) {
        self.decide(handle, task, Some(work));
    }

    /// Takes a thread away from a task that was not admitted.
    fn release(&self, handle: &Arc<ThreadHandle>, task: u64) {
        self.decide(handle, task, None);
    }

    /// A task that has a thread was admitted with this work, or dropped.
    fn decide(&self, handle: &Arc<ThreadHandle>, task: u64, work: Option<W>) {
        let mut state = self.state();
        let Some(thread) = state.thread(handle) else {
            return;
        };
        let Activity::Assigned {
            undecided, admitted, ..
        } = &mut thread.activity
        else {
            return;
        };
        let Some(at) = undecided.iter().position(|undecided| *undecided == task) else {
            return;
        };
        undecided.swap_remove(at);
        admitted.extend(work.map(|work| (task, work)));
        if undecided.is_empty() {
            thread.settle();
            state.assign();
        }
    }

    fn state(&self) -> MutexGuard<'_, State<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<W> State<W> {
    fn thread(&mut self, handle: &Arc<ThreadHandle>) -> Option<&mut Thread<W>> {
        self.threads
            .iter_mut()
            .find(|thread| Arc::ptr_eq(&thread.handle, handle))
    }

    /// What a thread must do now. `None` if it must wait.
    fn next(&mut self, handle: &Arc<ThreadHandle>) -> Option<Next<W>> {
        let closed = self.closed;
        let Some(thread) = self.thread(handle) else {
            return Some(Next::End);
        };
        match mem::replace(&mut thread.activity, Activity::busy()) {
            Activity::Ready {
                group,
                tasks,
                dispatched,
            } => {
                thread.activity = Activity::Busy {
                    group: Some(group),
                    tasks,
                };
                Some(Next::Work(dispatched))
            }
            Activity::Idle { .. } if closed => Some(Next::End),
            Activity::Idle { sweep: Some(now), .. } => Some(Next::Sweep(now)),
            waiting => {
                thread.activity = waiting;
                None
            }
        }
    }

    /// Gives the tasks threads, in their order, until no thread is idle.
    fn assign(&mut self) {
        let now = Instant::now();
        while let Some(place) = self.next_waiting()
            && let Some(first) = self.waiting.get(place)
            && let Some((thread, since)) = self.pick(&first.candidate.model)
            && let Some(formed) = form(
                self.waiting.iter().skip(place).map(|waiting| &waiting.candidate),
                &self.limits,
                now,
            )
        {
            let group = Arc::new(Group {
                number: first.task,
                guard: BatchGuard::default(),
            });
            let waited = now.duration_since(first.candidate.since.max(since.at));
            let is_live = first.candidate.class != Class::Batch;
            // From the last one, so that the places of the others stay.
            let members = formed.members.iter().rev();
            let mut members: Vec<Waiting> = members
                .filter_map(|at| self.waiting.remove(place + *at))
                .collect();
            members.reverse();
            let batch_waits = self
                .waiting
                .back()
                .is_some_and(|last| last.candidate.class == Class::Batch);
            self.live_in_a_row = match is_live && batch_waits {
                true => self.live_in_a_row + 1,
                false => 0,
            };
            let thread = &mut self.threads[thread];
            thread.activity = Activity::Assigned {
                since,
                group: group.number,
                undecided: members.iter().map(|member| member.task).collect(),
                admitted: Vec::with_capacity(members.len()),
                reason: formed.reason,
                waited,
            };
            for member in members {
                // An entry leaves the queue before its receiver is dropped.
                let _ = member.assigned.send(Assignment {
                    handle: Arc::clone(&thread.handle),
                    waited: now.duration_since(member.candidate.since),
                    group: Arc::clone(&group),
                });
            }
        }
    }

    /// The place of the task that is next. A batch task gets its turn between those of sessions.
    fn next_waiting(&self) -> Option<usize> {
        let is_batch = |waiting: &Waiting| waiting.candidate.class == Class::Batch;
        match self.waiting.iter().position(is_batch) {
            Some(place) if self.live_in_a_row >= LIVE_IN_A_ROW => Some(place),
            _ => (!self.waiting.is_empty()).then_some(0),
        }
    }

    /// The idle thread for a task with this model, and since when it is idle.
    fn pick(&self, model: &ModelId) -> Option<(usize, IdleSince)> {
        let idle = || {
            let threads = self.threads.iter().enumerate();
            threads.filter_map(|(at, thread)| match thread.activity {
                Activity::Idle { since, .. } => Some((at, since, &thread.loaded)),
                _ => None,
            })
        };
        // Of several threads that hold the model, the same one is used again, so that the others
        // drop theirs in time.
        let holds_model = idle()
            .filter(|(.., loaded)| loaded.contains(model))
            .max_by_key(|(_, since, _)| since.number);
        let picked =
            holds_model.or_else(|| idle().min_by_key(|(_, since, loaded)| (loaded.len(), since.number)));
        picked.map(|(at, since, _)| (at, since))
    }

    fn remove(&mut self, handle: &Arc<ThreadHandle>) {
        self.threads.retain(|thread| !Arc::ptr_eq(&thread.handle, handle));
    }
}

impl<W> Thread<W> {
    /// Begins the admitted tasks of its group, or becomes idle again without any.
    fn settle(&mut self) {
        let Activity::Assigned {
            since,
            group,
            mut admitted,
            reason,
            waited,
            ..
        } = mem::replace(&mut self.activity, Activity::busy())
        else {
            unreachable!("only a group that has a thread is settled");
        };
        // As they waited.
        admitted.sort_by_key(|(task, _)| *task);
        self.activity = match admitted.is_empty() {
            true => Activity::Idle { since, sweep: None },
            false => {
                let (tasks, works) = admitted.into_iter().unzip();
                Activity::Ready {
                    group,
                    tasks,
                    dispatched: Dispatched {
                        works,
                        reason,
                        waited,
                    },
                }
            }
        };
        // Also without work: the queue may be closed.
        self.handle.wake_up.notify_one();
    }
}

impl<W> fmt::Debug for RunQueue<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("RunQueue")
            .field("waiting", &state.waiting.len())
            .field("threads", &state.threads.len())
            .finish()
    }
}

#[cfg(test)]
mod tests;
