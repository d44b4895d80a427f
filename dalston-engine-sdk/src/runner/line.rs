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
use crate::engine::ModelId;

/// Tasks that no thread has begun, first come first served, and threads that have none.
#[derive(Default)]
pub(super) struct Line {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    /// Threads that sleep; the one that worked last is the last.
    resting: Vec<Resting>,
    /// Threads that were woken for a task and are not here yet.
    called: Vec<Resting>,
    closed: bool,
}

struct Waiting {
    ticket: Arc<Ticket>,
    work: Work,
}

struct Resting {
    seat: Arc<Seat>,
    loaded: Arc<[ModelId]>,
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

/// What an inference thread is to do.
pub(super) enum Next {
    /// Process a task.
    Work(Work),
    /// Drop the models that nobody has used for long, seen from then.
    Sweep(Instant),
    /// End.
    End,
}

impl Line {
    /// Adds a task at the end.
    pub(super) fn join(&self, work: Work) -> Arc<Ticket> {
        let ticket = Arc::<Ticket>::default();
        let mut state = self.state();
        // It is dropped, and with it the sender of its answer.
        if !state.closed {
            state.waiting.push_back(Waiting {
                ticket: Arc::clone(&ticket),
                work,
            });
        }
        let called = state.call();
        drop(state);
        ring(called);
        ticket
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

    /// Waits until there is something to do for a thread that has these models.
    pub(super) fn next(&self, seat: &Arc<Seat>, loaded: &Arc<[ModelId]>) -> Next {
        let mut state = self.state();
        let mut sweep = None;
        loop {
            if state.closed || seat.given_up.load(Ordering::Relaxed) {
                return Next::End;
            }
            if let Some(Waiting { ticket, work }) = state.take(loaded) {
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
                sweep: None,
            });
            // What is left in line is for others.
            ring(state.call());
            state = seat.bell.wait(state).unwrap_or_else(PoisonError::into_inner);
            sweep = state.rise(seat);
        }
    }

    /// Lets the threads that sleep drop the models that nobody has used for long.
    pub(super) fn sweep(&self, now: Instant) {
        let mut state = self.state();
        for resting in &mut state.resting {
            resting.sweep = Some(now);
            resting.seat.bell.notify_one();
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

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Line")
            .field("waiting", &state.waiting.len())
            .field("resting", &state.resting.len())
            .finish()
    }
}

impl State {
    /// The first task for a thread that has these models. One whose model another thread has that does nothing is left to that.
    fn take(&mut self, loaded: &[ModelId]) -> Option<Waiting> {
        let Self {
            waiting,
            resting,
            called,
            ..
        } = self;
        let has_other = |model: &ModelId| {
            let mut others = resting.iter().chain(&*called);
            others.any(|other| other.loaded.contains(model))
        };
        let at = waiting.iter().position(|waiting| {
            let model = &waiting.work.cx.info().model;
            loaded.contains(model) || !has_other(model)
        })?;
        waiting.remove(at)
    }

    /// Picks a thread to wake for the first task in line, unless one is on its way already: one that has the model, and of
    /// several the one that worked last, because it is most likely still awake.
    fn call(&mut self) -> Option<Arc<Seat>> {
        if !self.called.is_empty() || self.resting.is_empty() {
            return None;
        }
        let model = &self.waiting.front()?.work.cx.info().model;
        let has_it = self
            .resting
            .iter()
            .rposition(|resting| resting.loaded.contains(model));
        let called = self.resting.remove(has_it.unwrap_or(0));
        let seat = Arc::clone(&called.seat);
        self.called.push(called);
        Some(seat)
    }

    /// Takes a thread that woke up off the lists. Returns what it was told.
    fn rise(&mut self, seat: &Arc<Seat>) -> Option<Instant> {
        [&mut self.called, &mut self.resting]
            .into_iter()
            .find_map(|list| {
                let at = list.iter().position(|other| Arc::ptr_eq(&other.seat, seat))?;
                list.remove(at).sweep
            })
    }
}

fn ring(called: Option<Arc<Seat>>) {
    if let Some(seat) = called {
        seat.bell.notify_one();
    }
}
