//! The run queue: tasks wait here for an inference thread.
//!
//! Tasks get threads first come, first served. A task whose model an idle thread holds goes to that
//! thread. Any other task goes to the idle thread with the fewest models, so that no thread gives
//! up a model while another one has room.
//!
//! A thread is assigned to a task before the task begins: the control loop admits the task in
//! between, while the thread waits. A task that is dropped in that time gives its thread back.

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant as StdInstant};

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::model_id::ModelId;

/// Tasks that wait for a thread, and the threads that process them. `W` is the work that a thread
/// is given.
pub(super) struct RunQueue<W> {
    state: Mutex<State<W>>,
}

struct State<W> {
    /// Tasks without a thread, oldest first. Empty while a thread is idle.
    waiting: VecDeque<Waiting>,
    threads: Vec<Thread<W>>,
    last_task: u64,
    /// Counts how often a thread became idle.
    last_idle: u64,
    closed: bool,
}

struct Waiting {
    task: u64,
    model: ModelId,
    since: StdInstant,
    assigned: oneshot::Sender<Assignment>,
}

/// The thread of a task.
struct Assignment {
    handle: Arc<ThreadHandle>,
    /// How long the task waited for it.
    waited: Duration,
}

struct Thread<W> {
    handle: Arc<ThreadHandle>,
    /// The models that it held when it became idle.
    loaded: Arc<[ModelId]>,
    activity: Activity<W>,
}

enum Activity<W> {
    Idle {
        /// A higher number is a later time.
        since: u64,
        /// Models that were not used for their time to live, seen from then, must go.
        sweep: Option<Instant>,
    },
    /// A task has the thread and was not admitted yet.
    Assigned { task: u64, since: u64 },
    /// The work was handed over, and the thread has not taken it yet.
    Ready { task: u64, work: W },
    /// The thread processes this task, or sweeps its models.
    Busy { task: Option<u64> },
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

/// What an inference thread must do.
pub(super) enum Next<W> {
    /// Process a task.
    Work(W),
    /// Drop the models that were not used for their time to live, seen from then.
    Sweep(Instant),
    /// End.
    End,
}

impl<W> Default for RunQueue<W> {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                threads: Vec::new(),
                last_task: 0,
                last_idle: 0,
                closed: false,
            }),
        }
    }
}

impl<W> RunQueue<W> {
    /// Adds a task for this model at the end.
    pub(super) fn enqueue(self: &Arc<Self>, model: ModelId) -> QueueEntry<W> {
        let (assigned, thread) = oneshot::channel();
        let mut state = self.state();
        state.last_task += 1;
        let task = state.last_task;
        if !state.closed {
            state.waiting.push_back(Waiting {
                task,
                model,
                since: StdInstant::now(),
                assigned,
            });
            state.assign();
        }
        drop(state);
        QueueEntry {
            queue: Arc::clone(self),
            task,
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
        let since = state.last_idle;
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
            activity: Activity::Busy { task: None },
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

    /// Gives up the thread of a task: it ends by itself when it comes back. Returns `false` if it
    /// has come back.
    pub(super) fn give_up(&self, begun: &BegunTask) -> bool {
        let handle = &begun.thread;
        let mut state = self.state();
        let has_task = state.thread(handle).is_some_and(|thread| match thread.activity {
            Activity::Ready { task, .. } => task == begun.task,
            Activity::Busy { task } => task == Some(begun.task),
            Activity::Idle { .. } | Activity::Assigned { .. } => false,
        });
        if has_task {
            state.remove(handle);
        }
        has_task
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

    /// Hands work to a thread that is assigned to a task.
    fn begin(&self, handle: &Arc<ThreadHandle>, task: u64, work: W) {
        let mut state = self.state();
        if let Some(thread) = state.thread(handle) {
            thread.activity = Activity::Ready { task, work };
            handle.wake_up.notify_one();
        }
    }

    /// Takes a thread away from a task that was not admitted.
    fn release(&self, handle: &Arc<ThreadHandle>, released: u64) {
        let mut state = self.state();
        if let Some(thread) = state.thread(handle)
            && let Activity::Assigned { task, since } = thread.activity
            && task == released
        {
            thread.activity = Activity::Idle { since, sweep: None };
            // The queue may be closed.
            handle.wake_up.notify_one();
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
        match mem::replace(&mut thread.activity, Activity::Busy { task: None }) {
            Activity::Ready { task, work } => {
                thread.activity = Activity::Busy { task: Some(task) };
                Some(Next::Work(work))
            }
            Activity::Idle { .. } if closed => Some(Next::End),
            Activity::Idle { sweep: Some(now), .. } => Some(Next::Sweep(now)),
            waiting => {
                thread.activity = waiting;
                None
            }
        }
    }

    /// Gives the tasks threads, in the order in which they came, until no thread is idle.
    fn assign(&mut self) {
        while let Some(first) = self.waiting.front()
            && let Some((thread, since)) = self.pick(&first.model)
            && let Some(first) = self.waiting.pop_front()
        {
            let thread = &mut self.threads[thread];
            thread.activity = Activity::Assigned {
                task: first.task,
                since,
            };
            // An entry leaves the queue before its receiver is dropped.
            let _ = first.assigned.send(Assignment {
                handle: Arc::clone(&thread.handle),
                waited: first.since.elapsed(),
            });
        }
    }

    /// The idle thread for a task with this model, and since when it is idle.
    fn pick(&self, model: &ModelId) -> Option<(usize, u64)> {
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
            .max_by_key(|(_, since, _)| *since);
        let picked = holds_model.or_else(|| idle().min_by_key(|(_, since, loaded)| (loaded.len(), *since)));
        picked.map(|(at, since, _)| (at, since))
    }

    fn remove(&mut self, handle: &Arc<ThreadHandle>) {
        self.threads.retain(|thread| !Arc::ptr_eq(&thread.handle, handle));
    }
}

/// A task in the queue. Dropping it withdraws the task.
#[must_use = "a task that is dropped leaves the queue"]
pub(super) struct QueueEntry<W> {
    queue: Arc<RunQueue<W>>,
    task: u64,
    /// `None` once the thread is known.
    thread: Option<oneshot::Receiver<Assignment>>,
}

impl<W> QueueEntry<W> {
    /// Waits for a thread. `None` if the queue was closed.
    pub(super) async fn thread(&mut self) -> Option<AssignedThread<W>> {
        let assignment = self.thread.as_mut()?.await;
        self.thread = None;
        let Assignment { handle, waited } = assignment.ok()?;
        Some(AssignedThread {
            queue: Arc::clone(&self.queue),
            task: self.task,
            handle,
            waited,
        })
    }
}

impl<W> Drop for QueueEntry<W> {
    fn drop(&mut self) {
        let Some(mut thread) = self.thread.take() else {
            return;
        };
        self.queue
            .state()
            .waiting
            .retain(|waiting| waiting.task != self.task);
        if let Ok(assignment) = thread.try_recv() {
            self.queue.release(&assignment.handle, self.task);
        }
    }
}

/// A thread that waits for the admission of a task. Dropping it gives the thread to the next task.
#[must_use = "the thread waits for its task"]
pub(super) struct AssignedThread<W> {
    queue: Arc<RunQueue<W>>,
    task: u64,
    handle: Arc<ThreadHandle>,
    waited: Duration,
}

impl<W> AssignedThread<W> {
    /// How long the task waited for the thread.
    pub(super) fn waited(&self) -> Duration {
        self.waited
    }

    /// Lets the thread begin.
    pub(super) fn begin(self, work: W) -> BegunTask {
        self.queue.begin(&self.handle, self.task, work);
        BegunTask {
            task: self.task,
            thread: Arc::clone(&self.handle),
        }
    }
}

impl<W> Drop for AssignedThread<W> {
    fn drop(&mut self) {
        // Does nothing after `begin`.
        self.queue.release(&self.handle, self.task);
    }
}

/// A task that a thread has begun.
pub(super) struct BegunTask {
    task: u64,
    pub(super) thread: Arc<ThreadHandle>,
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
mod tests {
    use futures_util::FutureExt;

    use super::*;

    type Queue = Arc<RunQueue<&'static str>>;

    /// A thread that is idle and holds these models.
    fn thread(queue: &Queue, loaded: &[&str]) -> Arc<ThreadHandle> {
        let handle = ThreadHandle::new(0);
        queue.add(&handle);
        idle(queue, &handle, loaded);
        handle
    }

    fn idle(queue: &Queue, handle: &Arc<ThreadHandle>, loaded: &[&str]) {
        let loaded = loaded.iter().map(|model| ModelId::from(*model)).collect();
        queue.idle(handle, &loaded);
    }

    fn enqueue(queue: &Queue, model: &str) -> QueueEntry<&'static str> {
        queue.enqueue(model.into())
    }

    /// The thread of a task, if it has one.
    fn assigned(entry: &mut QueueEntry<&'static str>) -> Option<AssignedThread<&'static str>> {
        entry.thread().now_or_never().flatten()
    }

    /// What a thread must do, without waiting.
    fn next(queue: &Queue, handle: &Arc<ThreadHandle>) -> Option<Next<&'static str>> {
        queue.state().next(handle)
    }

    fn work(queue: &Queue, handle: &Arc<ThreadHandle>) -> &'static str {
        match next(queue, handle) {
            Some(Next::Work(work)) => work,
            _ => panic!("no work"),
        }
    }

    #[test]
    fn tasks_get_the_only_thread_in_order() {
        let queue = Queue::default();
        let (mut first, mut second) = (enqueue(&queue, "b"), enqueue(&queue, "a"));
        let only = thread(&queue, &["a"]);
        assert!(assigned(&mut second).is_none());
        assigned(&mut first).unwrap().begin("first");
        assert_eq!(work(&queue, &only), "first");
        idle(&queue, &only, &["b"]);
        assigned(&mut second).unwrap().begin("second");
        assert_eq!(work(&queue, &only), "second");
    }

    #[test]
    fn a_task_gets_the_idle_thread_that_holds_its_model() {
        let queue = Queue::default();
        let (other, holder) = (thread(&queue, &[]), thread(&queue, &["a", "b"]));
        let first = assigned(&mut enqueue(&queue, "b")).unwrap();
        assert!(Arc::ptr_eq(&first.handle, &holder));
        // The holder is not idle any more.
        let second = assigned(&mut enqueue(&queue, "b")).unwrap();
        assert!(Arc::ptr_eq(&second.handle, &other));
    }

    #[test]
    fn a_new_model_goes_to_the_thread_with_the_most_room() {
        let queue = Queue::default();
        let (longest, roomy) = (thread(&queue, &["a", "b"]), thread(&queue, &["c"]));
        let also_roomy = thread(&queue, &["d"]);
        let assigned = ["x", "y", "z"].map(|model| assigned(&mut enqueue(&queue, model)).unwrap());
        for (assigned, expected) in assigned.iter().zip([roomy, also_roomy, longest]) {
            assert!(Arc::ptr_eq(&assigned.handle, &expected));
        }
    }

    #[test]
    fn a_withdrawn_task_is_never_run() {
        let queue = Queue::default();
        let (waiting, mut last) = (enqueue(&queue, "a"), enqueue(&queue, "a"));
        drop(waiting);
        let only = thread(&queue, &["a"]);
        assigned(&mut last).unwrap().begin("last");
        assert_eq!(work(&queue, &only), "last");
    }

    #[test]
    fn a_refused_task_gives_its_thread_to_the_next_one() {
        let queue = Queue::default();
        let only = thread(&queue, &["a"]);
        let (mut refused, unseen, mut last) =
            (enqueue(&queue, "a"), enqueue(&queue, "a"), enqueue(&queue, "a"));
        drop(assigned(&mut refused).unwrap());
        assert!(assigned(&mut last).is_none());
        // It has the thread now, without having looked.
        drop(unseen);
        assigned(&mut last).unwrap().begin("last");
        assert_eq!(work(&queue, &only), "last");
    }

    #[test]
    fn a_thread_that_was_given_up_ends_when_it_comes_back() {
        let queue = Queue::default();
        let stuck = thread(&queue, &[]);
        let begun = assigned(&mut enqueue(&queue, "a")).unwrap().begin("endless");
        assert_eq!(work(&queue, &stuck), "endless");
        assert!(queue.give_up(&begun));
        idle(&queue, &stuck, &["a"]);
        assert!(assigned(&mut enqueue(&queue, "a")).is_none());
        assert!(matches!(next(&queue, &stuck), Some(Next::End)));
    }

    #[test]
    fn a_thread_with_a_later_task_is_not_given_up() {
        let queue = Queue::default();
        let slow = thread(&queue, &[]);
        let first = assigned(&mut enqueue(&queue, "a")).unwrap().begin("first");
        assert_eq!(work(&queue, &slow), "first");
        idle(&queue, &slow, &["a"]);
        assert!(!queue.give_up(&first));
        let _second = assigned(&mut enqueue(&queue, "a")).unwrap().begin("second");
        assert_eq!(work(&queue, &slow), "second");
        assert!(!queue.give_up(&first));
    }

    #[test]
    fn a_sweep_reaches_only_idle_threads() {
        let queue = Queue::default();
        let (swept, busy) = (thread(&queue, &["a"]), thread(&queue, &["b"]));
        let task = assigned(&mut enqueue(&queue, "b")).unwrap();
        let now = Instant::now();
        queue.sweep(now);
        assert!(matches!(next(&queue, &swept), Some(Next::Sweep(at)) if at == now));
        task.begin("work");
        assert_eq!(work(&queue, &busy), "work");
    }

    #[test]
    fn a_closed_queue_ends_its_threads_and_refuses_tasks() {
        let queue = Queue::default();
        let (rested, busy) = (thread(&queue, &[]), thread(&queue, &["a"]));
        let begun = assigned(&mut enqueue(&queue, "a")).unwrap();
        queue.close();
        assert!(matches!(next(&queue, &rested), Some(Next::End)));
        let refused = enqueue(&queue, "a").thread().now_or_never();
        assert!(matches!(refused, Some(None)));
        begun.begin("already admitted");
        assert_eq!(work(&queue, &busy), "already admitted");
        idle(&queue, &busy, &["a"]);
        assert!(matches!(next(&queue, &busy), Some(Next::End)));
    }

    #[test]
    fn a_task_wakes_a_thread_that_sleeps() {
        let queue = Queue::default();
        let handle = thread(&queue, &[]);
        let sleeper = {
            let (queue, handle) = (Arc::clone(&queue), Arc::clone(&handle));
            std::thread::spawn(move || queue.next(&handle))
        };
        assigned(&mut enqueue(&queue, "a")).unwrap().begin("work");
        assert!(matches!(sleeper.join().unwrap(), Next::Work("work")));
    }
}
