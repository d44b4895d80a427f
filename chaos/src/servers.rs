//! The faults of Redis, of the network in front of it, and of the storage.

use std::time::Duration;

use testbed::{Fault, Trouble};
use tokio::time::Instant;

use crate::platform::{Platform, Refusal};
use crate::random::Random;

/// The faults so far.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) restarts: usize,
    pub(crate) refusals: usize,
    pub(crate) network_faults: usize,
    pub(crate) silences: usize,
    pub(crate) storage_faults: usize,
    /// Faults of Redis or the network that lasted so long that leases ended.
    pub(crate) leases_lost: usize,
    pub(crate) longest_outage: Duration,
}

impl Counts {
    /// Counts a time without Redis.
    fn outage(&mut self, lasts: Duration, lease: Duration) {
        // Workers renew every third of a lease, so a shorter outage also ends leases.
        self.leases_lost += usize::from(lasts > lease / 2);
        self.longest_outage = self.longest_outage.max(lasts);
    }
}

/// An event with this mean interval.
#[derive(Debug)]
pub(crate) struct Every {
    seconds: f64,
    next: Instant,
}

impl Every {
    pub(crate) fn new(seconds: f64, random: &mut Random) -> Self {
        let next = Instant::now() + Duration::from_secs_f64(random.between(0.0, 2.0 * seconds));
        Self { seconds, next }
    }

    pub(crate) fn is_due(&mut self, random: &mut Random) -> bool {
        let due = self.next <= Instant::now();
        if due {
            self.next = Instant::now() + Duration::from_secs_f64(random.between(0.0, 2.0 * self.seconds));
        }
        due
    }
}

/// Faults at random times, one of each server at a time.
#[derive(Debug)]
pub(crate) struct Servers<'a> {
    platform: &'a Platform,
    lease: Duration,
    random: Random,
    pub(crate) counts: Counts,
    network: Every,
    storage: Every,
    redis: Every,
    network_heals: Option<Instant>,
    storage_heals: Option<Instant>,
    redis_heals: Option<(Instant, RedisFault)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RedisFault {
    Stopped,
    Refuses(Refusal),
}

impl<'a> Servers<'a> {
    pub(crate) fn new(platform: &'a Platform, lease: Duration, mut random: Random) -> Self {
        let [network, storage, redis] = [2.0, 3.0, 8.0].map(|seconds| Every::new(seconds, &mut random));
        Self {
            platform,
            lease,
            random,
            counts: Counts::default(),
            network,
            storage,
            redis,
            network_heals: None,
            storage_heals: None,
            redis_heals: None,
        }
    }

    /// Whether Redis answers all commands.
    pub(crate) fn redis_works(&self) -> bool {
        self.redis_heals.is_none()
    }

    /// Begins and ends the faults that are due.
    pub(crate) async fn act(&mut self) {
        let now = Instant::now();
        if self.network_heals.is_some_and(|at| at <= now) {
            self.heal_network();
        }
        if self.network_heals.is_none() && self.network.is_due(&mut self.random) {
            self.counts.network_faults += 1;
            let lasts = self.disturb_network();
            self.counts.outage(lasts, self.lease);
            self.network_heals = Some(now + lasts);
        }
        if self.storage_heals.is_some_and(|at| at <= now) {
            self.heal_storage();
        }
        if self.storage_heals.is_none() && self.storage.is_due(&mut self.random) {
            self.counts.storage_faults += 1;
            self.platform.s3.trouble(storage_trouble(&mut self.random));
            self.storage_heals = Some(now + Duration::from_secs_f64(self.random.between(0.3, 2.0)));
        }
        if self.redis_heals.is_some_and(|(at, _)| at <= now) {
            self.heal_redis().await;
        }
        if self.redis_heals.is_none() && self.redis.is_due(&mut self.random) {
            let (fault, lasts) = self.disturb_redis().await;
            self.counts.outage(lasts, self.lease);
            self.redis_heals = Some((now + lasts, fault));
        }
    }

    /// Ends all faults.
    pub(crate) async fn heal(&mut self) {
        self.heal_network();
        self.heal_storage();
        self.heal_redis().await;
    }

    fn heal_network(&mut self) {
        self.network_heals = None;
        let proxy = &self.platform.proxy;
        proxy.lose_answers(false);
        proxy.refuse(false);
        proxy.stall(false);
        proxy.delay(Duration::ZERO);
    }

    fn heal_storage(&mut self) {
        self.storage_heals = None;
        self.platform.s3.heal();
    }

    async fn heal_redis(&mut self) {
        match self.redis_heals.take() {
            Some((_, RedisFault::Stopped)) => self.platform.redis().restart().await,
            Some((_, RedisFault::Refuses(refusal))) => self.platform.take_writes(refusal).await,
            None => {}
        }
    }

    /// Starts a network fault. Returns its duration.
    fn disturb_network(&mut self) -> Duration {
        let (proxy, random) = (&self.platform.proxy, &mut self.random);
        match random.below(13) {
            0..5 => {
                proxy.cut();
                Duration::ZERO
            }
            5..7 => {
                proxy.lose_answers(true);
                Duration::from_secs_f64(random.between(0.02, 0.5))
            }
            7..9 => {
                proxy.delay(Duration::from_secs_f64(random.between(0.001, 0.2)));
                Duration::from_secs_f64(random.between(0.5, 2.0))
            }
            9..11 => {
                proxy.refuse(true);
                proxy.cut();
                Duration::from_secs_f64(random.between(0.1, 1.0))
            }
            11 => {
                proxy.silence();
                self.counts.silences += 1;
                // Until the workers notice it. New connections work.
                self.lease
            }
            _ => {
                proxy.stall(true);
                self.lease.mul_f64(random.between(0.1, 1.5))
            }
        }
    }

    /// Starts a fault of Redis. Returns its duration.
    async fn disturb_redis(&mut self) -> (RedisFault, Duration) {
        let random = &mut self.random;
        let (refusal, lasts) = match random.below(8) {
            0 => (Some(Refusal::OutOfMemory), random.between(0.3, 2.0)),
            1 => (Some(Refusal::FailedSave), random.between(0.3, 2.0)),
            2 => (Some(Refusal::FewReplicas), random.between(0.3, 2.0)),
            // Every lease and every record ends.
            3 => (None, self.lease.as_secs_f64() * random.between(1.1, 1.6)),
            _ => (None, random.between(0.0, 1.0)),
        };
        let fault = match refusal {
            Some(refusal) => {
                self.counts.refusals += 1;
                self.platform.refuse_writes(refusal).await;
                RedisFault::Refuses(refusal)
            }
            None => {
                self.counts.restarts += 1;
                self.platform.redis().kill();
                RedisFault::Stopped
            }
        };
        (fault, Duration::from_secs_f64(lasts))
    }
}

fn storage_trouble(random: &mut Random) -> Trouble {
    let fault = match random.below(7) {
        0 => Fault::INTERNAL_ERROR,
        1 => Fault::SLOW_DOWN,
        2 => Fault::Truncate(random.below(200)),
        3 => Fault::Cut,
        4 => Fault::LoseAnswer,
        _ => Fault::Delay(Duration::from_secs_f64(random.between(0.05, 0.5))),
    };
    Trouble::new(fault).fraction(random.between(0.05, 0.6))
}
