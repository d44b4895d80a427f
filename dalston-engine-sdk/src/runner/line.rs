//! The line in front of the inference threads: tasks wait in it for a thread, and threads for a task.
//!
//! A thread that is done with a task takes the next one by itself. A thread that sleeps is woken when a task comes, but only
//! one at a time: whoever was woken and finds more than it can do wakes the next one. So every thread is soon at work if there
//! is work for all, but tasks that take less time than it takes to wake a thread do not wake one each.

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::time::Instant;

use super::slot::Work;
use crate::model_id::ModelId;

/// Tasks that no thread has begun, first come first served, and threads that have none.
pub(super) struct Line<W = Work> {
    state: Mutex<State<W>>,
}

/// What waits in a line.
pub(super) trait ForModel {
    /// The model that it needs.
    fn model(&self) -> &ModelId;
}

struct State<W> {
    waiting: VecDeque<Waiting<W>>,
    /// Threads that sleep; the one that worked last is the last.
    resting: Vec<Resting>,
    /// Threads that were woken for a task, or are done with one, and are not here yet.
    coming: Vec<Resting>,
    closed: bool,
}

struct Waiting<W> {
    ticket: Arc<Ticket>,
    work: W,
}

struct Resting {
    seat: Arc<Seat>,
    loaded: Arc<[ModelId]>,
    /// It was picked for the first task in line, or is new.
    picked: bool,
    /// Models that were not used for long, seen from then, should go.
    sweep: Option<Instant>,
}

/// An inference thread.
pub(super) struct Seat {
    pub(super) index: usize,
    bell: Condvar,
    /// Changed only under the lock of the line.
    given_up: AtomicBool,
}

impl Seat {
    pub(super) fn new(index: usize) -> Arc<Self> {
        Arc::new(Self {
            index,
            bell: Condvar::new(),
            given_up: AtomicBool::new(false),
        })
    }
}

/// The place of a task in the line.
#[derive(Default)]
pub(super) struct Ticket {
    begun: OnceLock<Arc<Seat>>,
}

impl Ticket {
    /// The thread that has begun the task, if one has.
    pub(super) fn seat(&self) -> Option<&Arc<Seat>> {
        self.begun.get()
    }
}

/// Wakes a thread that was called, when it is dropped: until then it sleeps, and no other one is called.
#[must_use = "it rings at once"]
pub(super) struct Bell(Arc<Seat>);

impl Drop for Bell {
    fn drop(&mut self) {
        self.0.bell.notify_one();
    }
}

/// What an inference thread is to do.
pub(super) enum Next<W = Work> {
    /// Process a task.
    Work(W),
    /// Drop the models that nobody has used for long, seen from then.
    Sweep(Instant),
    /// End.
    End,
}

impl<W> Default for Line<W> {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                resting: Vec::new(),
                coming: Vec::new(),
                closed: false,
            }),
        }
    }
}

impl<W: ForModel> Line<W> {
    /// Adds a task at the end. The bell is for the thread that is to come for it, if one sleeps.
    pub(super) fn join(&self, work: W) -> (Arc<Ticket>, Option<Bell>) {
        let ticket = Arc::<Ticket>::default();
        let mut state = self.state();
        // It is dropped, and with it the sender of its answer.
        if !state.closed {
            state.waiting.push_back(Waiting {
                ticket: Arc::clone(&ticket),
                work,
            });
        }
        (ticket, state.call().map(Bell))
    }

    /// Takes a task out again. Returns whether it was still there: no thread has begun it then, and none will.
    pub(super) fn withdraw(&self, ticket: &Arc<Ticket>) -> bool {
        let mut state = self.state();
        let at = state
            .waiting
            .iter()
            .position(|waiting| Arc::ptr_eq(&waiting.ticket, ticket));
        let withdrawn = at.and_then(|at| state.waiting.remove(at));
        drop(state);
        withdrawn.is_some()
    }

    /// Says that a thread is done with its task and will be here in a moment. To be said before anyone hears of the task's end: a
    /// task that follows at once should find the thread that has its model.
    pub(super) fn comes(&self, seat: &Arc<Seat>, loaded: &Arc<[ModelId]>) {
        self.state().coming.push(Resting {
            seat: Arc::clone(seat),
            loaded: Arc::clone(loaded),
            picked: false,
            sweep: None,
        });
    }

    /// Says that a new thread will be here in a moment.
    pub(super) fn expect(&self, seat: &Arc<Seat>) {
        self.state().coming.push(Resting {
            seat: Arc::clone(seat),
            loaded: Arc::new([]),
            picked: true,
            sweep: None,
        });
    }

    /// A thread that was expected could not be started.
    pub(super) fn expect_no_more(&self, seat: &Arc<Seat>) {
        self.state().rise(seat);
    }

    /// Waits until there is something to do for a thread that has these models.
    pub(super) fn next(&self, seat: &Arc<Seat>, loaded: &Arc<[ModelId]>) -> Next<W> {
        let mut state = self.state();
        let (mut picked, mut sweep) = state.rise(seat);
        loop {
            if state.closed || seat.given_up.load(Ordering::Relaxed) {
                // Nobody waits for this one any more.
                let called = state.call();
                drop(state);
                ring(called);
                return Next::End;
            }
            if let Some(Waiting { ticket, work }) = state.take(loaded, picked) {
                let _ = ticket.begun.set(Arc::clone(seat));
                let called = state.call();
                drop(state);
                ring(called);
                return Next::Work(work);
            }
            if let Some(now) = sweep {
                let called = state.call();
                drop(state);
                ring(called);
                return Next::Sweep(now);
            }
            state.resting.push(Resting {
                seat: Arc::clone(seat),
                loaded: Arc::clone(loaded),
                picked: false,
                sweep: None,
            });
            // What is left in line is for others.
            let called = state.call();
            if called.as_ref().is_some_and(|called| Arc::ptr_eq(called, seat)) {
                // Nobody sleeps beside our bell yet, so it would ring in vain.
                (picked, sweep) = state.rise(seat);
                continue;
            }
            ring(called);
            state = seat.bell.wait(state).unwrap_or_else(PoisonError::into_inner);
            (picked, sweep) = state.rise(seat);
        }
    }

    /// Lets the threads that sleep drop the models that nobody has used for long.
    pub(super) fn sweep(&self, now: Instant) {
        let mut state = self.state();
        let State { resting, coming, .. } = &mut *state;
        for thread in resting.iter_mut().chain(coming) {
            thread.sweep = Some(now);
            thread.seat.bell.notify_one();
        }
    }

    /// Lets a thread end when it comes back, if it does and unless it was here before: `is_done` says so.
    pub(super) fn give_up(&self, seat: &Seat, is_done: impl FnOnce() -> bool) -> bool {
        // A thread answers before it comes here, so it can't pass by between the two.
        let _state = self.state();
        let given_up = !is_done();
        seat.given_up.store(given_up, Ordering::Relaxed);
        given_up
    }

    /// Lets all threads end that have nothing to do, and the others when they are done.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        let waiting = mem::take(&mut state.waiting);
        for resting in &state.resting {
            resting.seat.bell.notify_one();
        }
        drop(state);
        drop(waiting);
    }

    fn state(&self) -> MutexGuard<'_, State<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<W: ForModel> fmt::Debug for Line<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Line")
            .field("waiting", &state.waiting.len())
            .field("resting", &state.resting.len())
            .finish()
    }
}

impl<W: ForModel> State<W> {
    /// The first task for a thread that has these models. One with another model is left to a thread that does nothing and has
    /// it, and else to the one that is picked for it, so that no thread gives up a model while one that was idle for longer has room.
    fn take(&mut self, loaded: &[ModelId], picked: bool) -> Option<Waiting<W>> {
        let Self {
            waiting,
            resting,
            coming,
            ..
        } = self;
        let has_other = |model: &ModelId| {
            let mut others = resting.iter().chain(&*coming);
            others.any(|other| other.loaded.contains(model))
        };
        let may_load = picked || resting.is_empty() && coming.is_empty();
        let at = waiting.iter().position(|waiting| {
            let model = waiting.work.model();
            loaded.contains(model) || may_load && !has_other(model)
        })?;
        waiting.remove(at)
    }

    /// Picks a thread to wake for the first task in line, unless one is on its way already: one that has the model, and of
    /// several the one that worked last, because it is most likely still awake; else one without a model, else the one that was
    /// idle for longest.
    fn call(&mut self) -> Option<Arc<Seat>> {
        if !self.coming.is_empty() || self.resting.is_empty() {
            return None;
        }
        let model = self.waiting.front()?.work.model();
        let resting = &mut self.resting;
        let has_it = resting.iter().rposition(|thread| thread.loaded.contains(model));
        let has_none = || resting.iter().position(|thread| thread.loaded.is_empty());
        let mut called = resting.remove(has_it.or_else(has_none).unwrap_or(0));
        called.picked = true;
        let seat = Arc::clone(&called.seat);
        self.coming.push(called);
        Some(seat)
    }

    /// Takes a thread that is here off the lists. Returns whether it was picked, and what it was told.
    fn rise(&mut self, seat: &Arc<Seat>) -> (bool, Option<Instant>) {
        let found = [&mut self.coming, &mut self.resting]
            .into_iter()
            .find_map(|list| {
                let at = list.iter().position(|other| Arc::ptr_eq(&other.seat, seat))?;
                Some(list.remove(at))
            });
        found.map_or((false, None), |thread| (thread.picked, thread.sweep))
    }
}

fn ring(called: Option<Arc<Seat>>) {
    drop(called.map(Bell));
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    impl ForModel for ModelId {
        fn model(&self) -> &ModelId {
            self
        }
    }

    /// Lets a thread ask for something to do.
    fn ask(line: &Arc<Line<ModelId>>, seat: &Arc<Seat>, loaded: &[&str]) -> mpsc::Receiver<Next<ModelId>> {
        let (line, seat) = (Arc::clone(line), Arc::clone(seat));
        let loaded: Arc<[ModelId]> = loaded.iter().map(|model| ModelId::from(*model)).collect();
        let (sender, told) = mpsc::channel();
        thread::spawn(move || sender.send(line.next(&seat, &loaded)));
        told
    }

    fn until_resting(line: &Line<ModelId>, threads: usize) {
        while line.state().resting.len() != threads {
            thread::yield_now();
        }
    }

    #[test]
    fn a_thread_that_is_picked_by_itself_does_not_sleep_over_it() {
        const LONG: Duration = Duration::from_secs(30);
        let line = Arc::<Line<ModelId>>::default();
        let (other, spoiled) = (Seat::new(0), Seat::new(1));
        let rests = ask(&line, &other, &["a"]);
        until_resting(&line, 1);
        // It has lost its model over its task, and before it is here somebody wants one that nobody has.
        let nothing: Arc<[ModelId]> = Arc::new([]);
        line.comes(&spoiled, &nothing);
        let (_ticket, _) = line.join(ModelId::from("b"));
        let told = ask(&line, &spoiled, &[]).recv_timeout(LONG).unwrap();
        assert!(matches!(told, Next::Work(model) if model.as_str() == "b"));
        let (_ticket, _) = line.join(ModelId::from("a"));
        let told = rests.recv_timeout(LONG).unwrap();
        assert!(matches!(told, Next::Work(model) if model.as_str() == "a"));
    }
    #[test]
    fn a_thread_is_called_once_for_the_tasks_that_join_before_its_bell_rings() {
        const LONG: Duration = Duration::from_secs(30);
        let line = Arc::<Line<ModelId>>::default();
        let seat = Seat::new(0);
        let told = ask(&line, &seat, &["a"]);
        until_resting(&line, 1);
        let (first, bell) = line.join(ModelId::from("a"));
        let (_second, no_bell) = line.join(ModelId::from("a"));
        assert!(bell.is_some() && no_bell.is_none());
        drop(bell);
        assert!(matches!(told.recv_timeout(LONG).unwrap(), Next::Work(_)));
        assert!(first.seat().is_some_and(|begun| Arc::ptr_eq(begun, &seat)));
    }
}
