//! Leases that end too early, too late or again and again.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dalston_engine_sdk::CancelReason;
use dalston_engine_sdk::broker::{
    Broker, BrokerError, Claim, Consumer, Delivery, EventContext, HandBack, Lookup, MemoryBroker, Outcome,
    Ownership,
};
use dalston_engine_sdk::store::key;
use serde_json::json;
use tokio::time::Instant;

use crate::hazards::{begun, failed};
use crate::rig::{Closures, HeldTime, Rig, answer, gate, job_of, pass};

pub(crate) fn other_worker() -> Consumer {
    Consumer {
        engine_id: "test-asr".to_owned(),
        instance: "test-asr-other".to_owned(),
    }
}

#[tokio::test]
async fn a_worker_without_the_lease_stops_and_reports_nothing() {
    let _time = HeldTime::new();
    // Renewals come every 20 s. This lease ends before the first one.
    let rig = Rig::with_broker(MemoryBroker::with(Duration::from_secs(10), 100));
    let broker = AwkwardBroker::new(&rig);
    let (tell, mut told) = begun();
    let reasons = Arc::new(Mutex::new(Vec::new()));
    let note = Arc::clone(&reasons);
    let engine = Closures::new(move |_, cx| {
        tell.send(String::new()).unwrap();
        loop {
            if let Some(reason) = cx.cancel_reason() {
                note.lock().unwrap().push(reason);
                return answer();
            }
            std::thread::yield_now();
        }
    });
    let act = async {
        rig.submit("t1").await;
        told.recv().await.unwrap();
        pass(Duration::from_secs(11)).await;
        let taken = rig
            .broker
            .receive(&other_worker(), Duration::ZERO)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            (taken.claim.task_id.as_str(), taken.claim.delivery_count),
            ("t1", 2)
        );
        pass(Duration::from_millis(9_500)).await;
        while reasons.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(rig.broker.renew(&taken.claim).await.unwrap(), Ownership::Held);
    };
    let builder = rig.runner(engine).broker(broker);
    rig.run(builder, act).await.1.unwrap();
    assert_eq!(*reasons.lock().unwrap(), [CancelReason::LeaseLost]);
    assert_eq!(rig.events(), ["t1 started"]);
    assert_eq!(rig.broker.held(), 1, "the other worker still has it");
    let span = rig.telemetry.span("engine.test-asr.process");
    assert_eq!(span.attribute("error.type").unwrap().to_string(), "lease_lost");
}

#[tokio::test]
async fn a_cut_off_worker_does_not_overwrite_a_peers_result() {
    let _time = HeldTime::new();
    let rig = Rig::with_broker(MemoryBroker::with(Duration::from_secs(60), 100));
    let away = Arc::new(AtomicBool::new(false));
    let broker = AwkwardBroker {
        away: Arc::clone(&away),
        ..AwkwardBroker::new(&rig)
    };
    let (long, go_on) = gate();
    let (tell, mut told) = begun();
    let engine = Closures::new(move |_, _| {
        tell.send(String::new()).unwrap();
        long.wait();
        answer()
    });
    let act = async {
        rig.submit("t1").await;
        told.recv().await.unwrap();
        away.store(true, Ordering::SeqCst);
        pass(Duration::from_secs(61)).await;
        let peer = rig.broker.receive(&other_worker(), Duration::ZERO).await;
        let peer = peer.unwrap().unwrap().claim;
        let context = EventContext::default();
        let _ = rig.broker.started(&peer, &context).await.unwrap();
        let response = json!({"task_id": "t1", "data": "the successor's"});
        let place = key::task_response(&job_of("t1"), "t1");
        rig.store.write(&place, response.to_string()).await.unwrap();
        let done = Outcome::Completed {
            artifacts: Vec::new(),
        };
        let _ = rig.broker.finish(&peer, &done, &context).await.unwrap();
        away.store(false, Ordering::SeqCst);
        go_on.open();
    };
    let builder = rig.runner(engine).broker(broker);
    rig.run(builder, act).await.1.unwrap();
    assert_eq!(rig.response("t1").await, json!("the successor's"));
    assert_eq!(rig.events(), ["t1 started", "t1 started", "t1 completed"]);
}

#[tokio::test]
async fn a_suspended_worker_writes_nothing_once_a_peer_has_the_task() {
    // The peer gets the task with its next read.
    let rig = Rig::with_broker(MemoryBroker::with(Duration::from_millis(100), 100));
    let broker = AwkwardBroker {
        stood_still: Duration::from_secs(61),
        ..AwkwardBroker::new(&rig)
    };
    let (long, go_on) = gate();
    let (tell, mut told) = begun();
    let engine = Closures::new(move |_, _| {
        tell.send(String::new()).unwrap();
        long.wait();
        answer()
    });
    let act = async {
        rig.submit("t1").await;
        told.recv().await.unwrap();
        let peer = rig.broker.receive(&other_worker(), Duration::from_secs(20)).await;
        assert!(peer.unwrap().is_some());
        go_on.open();
    };
    let builder = rig.runner(engine).broker(broker);
    rig.run(builder, act).await.1.unwrap();
    let place = rig.store.locator(&key::task_response(&job_of("t1"), "t1"));
    assert!(rig.store.read(&place, 1 << 20).await.is_err(), "no response");
    assert_eq!(rig.events(), ["t1 started"]);
}

#[tokio::test]
async fn a_result_waits_for_a_broker_that_fails_over() {
    tokio::time::pause();
    let rig = Rig::new();
    let broker = AwkwardBroker {
        finishing: Some(Instant::now() + Duration::from_secs(40)),
        ..AwkwardBroker::new(&rig)
    };
    let runs = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&runs);
    let engine = Closures::new(move |_, _| {
        count.fetch_add(1, Ordering::SeqCst);
        answer()
    });
    rig.submit("t1").await;
    let builder = rig.runner(engine).broker(broker);
    rig.run(builder, rig.outcome("t1")).await.0.unwrap();
    assert_eq!(rig.events(), ["t1 started", "t1 completed"]);
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_long_task_keeps_its_lease_as_long_as_it_runs() {
    let _time = HeldTime::new();
    let rig = Rig::with_broker(MemoryBroker::with(Duration::from_secs(30), 100));
    let (long, go_on) = gate();
    let (tell, mut told) = begun();
    let engine = Closures::new(move |_, _| {
        tell.send(String::new()).unwrap();
        long.wait();
        answer()
    });
    let act = async {
        rig.submit("t1").await;
        told.recv().await.unwrap();
        for _ in 0..60 {
            pass(Duration::from_secs(10)).await;
            tokio::task::yield_now().await;
        }
        assert!(
            rig.broker
                .receive(&other_worker(), Duration::ZERO)
                .await
                .unwrap()
                .is_none()
        );
        go_on.open();
        rig.outcome("t1").await.unwrap();
    };
    rig.run(rig.runner(engine), act).await.1.unwrap();
}

#[tokio::test]
async fn renewals_go_on_after_one_that_failed() {
    let _time = HeldTime::new();
    let rig = Rig::with_broker(MemoryBroker::with(Duration::from_secs(60), 100));
    let away = Arc::new(AtomicBool::new(false));
    let broker = AwkwardBroker {
        away: Arc::clone(&away),
        ..AwkwardBroker::new(&rig)
    };
    let (long, go_on) = gate();
    let (tell, mut told) = begun();
    let engine = Closures::new(move |_, _| {
        tell.send(String::new()).unwrap();
        long.wait();
        answer()
    });
    let act = async {
        rig.submit("t1").await;
        told.recv().await.unwrap();
        away.store(true, Ordering::SeqCst);
        pass(Duration::from_secs(21)).await;
        away.store(false, Ordering::SeqCst);
        for _ in 0..20 {
            pass(Duration::from_secs(10)).await;
            let peer = rig.broker.receive(&other_worker(), Duration::ZERO).await;
            assert!(peer.unwrap().is_none());
        }
        go_on.open();
        rig.outcome("t1").await.unwrap();
    };
    let builder = rig.runner(engine).broker(broker);
    rig.run(builder, act).await.1.unwrap();
}

/// Another worker takes the next task.
async fn take(rig: &Rig) -> Claim {
    let taken = rig.broker.receive(&other_worker(), Duration::ZERO).await;
    taken.unwrap().unwrap().claim
}

async fn start(rig: &Rig, claim: &Claim) {
    let started = rig.broker.started(claim, &EventContext::default()).await;
    assert_eq!(started.unwrap(), Ownership::Held);
}

/// A worker in whose inference the next task is, and that dies.
async fn killed_by_its_task(rig: &Rig) {
    start(rig, &take(rig).await).await;
    pass(Duration::from_secs(11)).await;
}

fn short_lease() -> Rig {
    Rig::with_broker(MemoryBroker::with(Duration::from_secs(10), 100))
}

#[tokio::test]
async fn task_that_kills_three_workers_fails_with_the_count() {
    let _time = HeldTime::new();
    let rig = short_lease();
    rig.submit("poison").await;
    for _ in 0..3 {
        killed_by_its_task(&rig).await;
    }
    let engine = Closures::new(|_, _| panic!("processed"));
    let (outcome, _) = rig.run(rig.runner(engine), rig.outcome("poison")).await;
    let error =
        "inference of the task began 3 times (limit 3) and no worker survived it or finished it in time";
    assert_eq!(outcome.map(|_| ()), failed("too_many_deliveries", error));
    let starts = ["poison started"; 4].into_iter();
    let events: Vec<_> = starts.chain(["poison failed too_many_deliveries"]).collect();
    assert_eq!(rig.events(), events);
}

#[tokio::test]
async fn task_that_only_waited_in_dead_workers_is_processed() {
    let _time = HeldTime::new();
    let rig = short_lease();
    rig.submit("innocent").await;
    for _ in 0..10 {
        let _ = take(&rig).await;
        pass(Duration::from_secs(11)).await;
    }
    let engine = Closures::new(|_, _| answer());
    let (outcome, _) = rig.run(rig.runner(engine), rig.outcome("innocent")).await;
    outcome.unwrap();
    assert_eq!(rig.events(), ["innocent started", "innocent completed"]);
}

#[tokio::test]
async fn hand_backs_of_running_tasks_are_no_crashes() {
    let _time = HeldTime::new();
    let rig = short_lease();
    rig.submit("innocent").await;
    for number in 0..4 {
        let claim = take(&rig).await;
        start(&rig, &claim).await;
        match number {
            0..2 => assert_eq!(rig.broker.release(&claim).await.unwrap(), Ownership::Held),
            _ => {
                let cause = format!("cause-{number}");
                let handed_back = rig.broker.hand_back(&claim, &cause, 1).await;
                assert_eq!(handed_back.unwrap(), HandBack::Done);
                pass(Duration::from_secs(11)).await;
            }
        }
    }
    killed_by_its_task(&rig).await;
    let engine = Closures::new(|_, _| answer());
    let (outcome, _) = rig.run(rig.runner(engine), rig.outcome("innocent")).await;
    outcome.unwrap();
}

#[tokio::test]
async fn task_that_kills_workers_before_inference_ends_at_last() {
    let _time = HeldTime::new();
    let rig = short_lease();
    rig.submit("poison").await;
    for _ in 0..30 {
        let _ = take(&rig).await;
        pass(Duration::from_secs(11)).await;
    }
    let engine = Closures::new(|_, _| panic!("processed"));
    let (outcome, _) = rig.run(rig.runner(engine), rig.outcome("poison")).await;
    let error = "the task was delivered 31 times (limit 30) and no worker got as far as its inference";
    assert_eq!(outcome.map(|_| ()), failed("too_many_deliveries", error));
}

#[tokio::test]
async fn task_runs_alone_after_it_killed_a_worker() {
    let _time = HeldTime::new();
    let rig = short_lease();
    rig.submit("suspect").await;
    killed_by_its_task(&rig).await;
    let running = Arc::new(Mutex::new(Vec::new()));
    let names = Arc::clone(&running);
    let (hold, go_on) = gate();
    let (tell, mut told) = begun();
    let engine = Closures::new(move |_, cx| {
        let name = cx.info().task_id.clone();
        names.lock().unwrap().push(name.clone());
        tell.send(name.clone()).unwrap();
        hold.wait();
        let beside = names.lock().unwrap().clone();
        names.lock().unwrap().retain(|running| *running != name);
        Ok(json!(beside))
    });
    for name in ["a", "b", "c"] {
        rig.submit(name).await;
    }
    let act = async {
        for _ in 0..4 {
            told.recv().await.unwrap();
            for _ in 0..1_000 {
                tokio::task::yield_now().await;
            }
            go_on.open();
        }
        for name in ["a", "b", "c", "suspect"] {
            rig.outcome(name).await.unwrap();
        }
    };
    rig.run(rig.runner(engine).slots(2), act).await.1.unwrap();
    assert_eq!(rig.response("suspect").await, json!(["suspect"]));
    for name in ["a", "b", "c"] {
        let beside = rig.response(name).await.to_string();
        assert!(!beside.contains("suspect"), "{name}: {beside}");
    }
}

/// A broker that grants shorter leases than it reports, so that its worker renews too late. It
/// gives its worker only one task, and reports its start slowly.
#[derive(Debug)]
pub(crate) struct AwkwardBroker {
    pub(crate) broker: MemoryBroker,
    /// How long the process was suspended while it received a task.
    pub(crate) stood_still: Duration,
    pub(crate) given: AtomicBool,
    pub(crate) announcing: Duration,
    /// How long the answer to that takes.
    pub(crate) answering: Duration,
    /// Whether renewals are lost.
    pub(crate) away: Arc<AtomicBool>,
    /// When the first outcome is accepted.
    pub(crate) finishing: Option<Instant>,
    /// Whether it panics when it is asked about a cancellation.
    pub(crate) panics: bool,
}

impl AwkwardBroker {
    pub(crate) fn new(rig: &Rig) -> Self {
        Self {
            broker: rig.broker.clone(),
            stood_still: Duration::ZERO,
            given: AtomicBool::new(false),
            announcing: Duration::ZERO,
            answering: Duration::ZERO,
            away: Arc::default(),
            finishing: None,
            panics: false,
        }
    }
}

#[async_trait]
impl Broker for AwkwardBroker {
    fn system(&self) -> &'static str {
        self.broker.system()
    }

    fn lease(&self) -> Duration {
        Duration::from_secs(60)
    }

    async fn receive(&self, consumer: &Consumer, wait: Duration) -> Result<Option<Delivery>, BrokerError> {
        if self.given.load(Ordering::SeqCst) {
            return std::future::pending().await;
        }
        let mut delivery = self.broker.receive(consumer, wait).await?;
        if let Some(delivery) = &mut delivery
            && !self.stood_still.is_zero()
        {
            delivery.asked_at = Instant::now().into_std().checked_sub(self.stood_still);
        }
        self.given.store(delivery.is_some(), Ordering::SeqCst);
        Ok(delivery)
    }

    async fn lookup(&self, claim: &Claim) -> Result<Lookup, BrokerError> {
        self.broker.lookup(claim).await
    }

    async fn started(&self, claim: &Claim, event: &EventContext) -> Result<Ownership, BrokerError> {
        if !self.announcing.is_zero() {
            tokio::time::sleep(self.announcing).await;
        }
        let ownership = self.broker.started(claim, event).await;
        if !self.answering.is_zero() {
            tokio::time::sleep(self.answering).await;
        }
        ownership
    }

    async fn renew(&self, claim: &Claim) -> Result<Ownership, BrokerError> {
        if self.away.load(Ordering::SeqCst) {
            return Err(BrokerError::new("renewing", "the network is away"));
        }
        self.broker.renew(claim).await
    }

    async fn is_cancelled(&self, claim: &Claim) -> Result<bool, BrokerError> {
        assert!(!self.panics, "no such host");
        self.broker.is_cancelled(claim).await
    }

    async fn finish(
        &self,
        claim: &Claim,
        outcome: &Outcome,
        event: &EventContext,
    ) -> Result<Ownership, BrokerError> {
        if self.finishing.is_some_and(|then| Instant::now() < then) {
            return Err(BrokerError::new("finishing", "no replicas"));
        }
        self.broker.finish(claim, outcome, event).await
    }

    async fn release(&self, claim: &Claim) -> Result<Ownership, BrokerError> {
        self.broker.release(claim).await
    }

    async fn hand_back(&self, claim: &Claim, cause: &str, limit: u32) -> Result<HandBack, BrokerError> {
        self.broker.hand_back(claim, cause, limit).await
    }
}
