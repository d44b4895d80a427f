//! Asks cloud providers within the time that the start of a process has for them.

use std::cmp::Reverse;
use std::sync::mpsc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::error::MetadataError;
use super::provider::{CloudProvider, Found, Outcome};

/// The longest that a detection takes.
const BUDGET: Duration = Duration::from_secs(2);
/// The part of it for requests. The rest is for the return of the answers from their thread.
const ASKING: Duration = Duration::from_millis(1_900);

/// Returns what the first provider that is known tells, otherwise what is known of a platform whose
/// services were silent.
pub(super) fn detect(providers: Vec<Box<dyn CloudProvider>>) -> Found {
    let mut found: Vec<_> = providers.iter().map(|provider| provider.recognise()).collect();
    let is_known = found.iter().any(|found| found.outcome == Outcome::Known);
    if !is_known && found.iter().any(|found| found.outcome == Outcome::Unasked) {
        found = ask_on_a_thread(providers, found);
    }
    let is_useful = |found: &Found| {
        (
            found.outcome == Outcome::Known,
            found.platform.is_some(),
            matches!(found.outcome, Outcome::Silent(_)),
        )
    };
    found
        .into_iter()
        .min_by_key(|found| Reverse(is_useful(found)))
        .unwrap_or_default()
}

/// A thread of its own, because a runtime can't be entered from within another one.
fn ask_on_a_thread(providers: Vec<Box<dyn CloudProvider>>, recognised: Vec<Found>) -> Vec<Found> {
    let (sender, answer) = mpsc::sync_channel(1);
    let mut found = recognised.clone();
    let thread = std::thread::Builder::new().name("cloud".to_owned());
    let asking = thread.spawn(move || {
        ask_on_a_runtime(&providers, &mut found);
        let _ = sender.send(found);
    });
    // The resolution of a host name can't be cancelled, so the thread may outlast its deadline.
    match asking.map(|_| answer.recv_timeout(BUDGET)) {
        Ok(Ok(found)) => found,
        _ => silent(recognised, &MetadataError::Timeout),
    }
}

fn ask_on_a_runtime(providers: &[Box<dyn CloudProvider>], found: &mut Vec<Found>) {
    let deadline = Instant::now() + ASKING;
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match built {
        Ok(runtime) => runtime,
        Err(error) => {
            let error = MetadataError::NoConnection(error.to_string());
            *found = silent(std::mem::take(found), &error);
            return;
        }
    };
    runtime.block_on(async {
        for (provider, found) in providers.iter().zip(found) {
            if found.outcome != Outcome::Unasked {
                continue;
            }
            found.outcome = match timeout_at(deadline, provider.ask(found)).await {
                Ok(Ok(())) => Outcome::Known,
                Ok(Err(error)) => Outcome::Silent(error),
                Err(_) => Outcome::Silent(MetadataError::Timeout),
            };
            if found.outcome == Outcome::Known {
                break;
            }
        }
    });
    // Does not wait for the resolution of a host name.
    runtime.shutdown_background();
}

fn silent(mut found: Vec<Found>, error: &MetadataError) -> Vec<Found> {
    for found in &mut found {
        if found.outcome == Outcome::Unasked {
            found.outcome = Outcome::Silent(error.clone());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::provider::{Asking, Platform};
    use super::*;

    const HERE: Platform = Platform::new("here", "here_vm");
    const THERE: Platform = Platform::new("there", "there_vm");

    struct Provider {
        platform: Option<Platform>,
        outcome: Outcome,
        answer: Option<Result<(), MetadataError>>,
    }

    impl CloudProvider for Provider {
        fn recognise(&self) -> Found {
            Found {
                platform: self.platform,
                outcome: self.outcome.clone(),
                ..Found::default()
            }
        }

        fn ask<'a>(&'a self, found: &'a mut Found) -> Asking<'a> {
            Box::pin(async {
                found.attributes.push(("asked", String::new()));
                match &self.answer {
                    Some(answer) => answer.clone(),
                    None => std::future::pending().await,
                }
            })
        }
    }

    fn detected(providers: impl IntoIterator<Item = Provider>) -> Found {
        let boxed = |provider| Box::new(provider) as Box<dyn CloudProvider>;
        detect(providers.into_iter().map(boxed).collect())
    }

    fn provider(
        platform: Option<Platform>,
        outcome: Outcome,
        answer: Option<Result<(), MetadataError>>,
    ) -> Provider {
        Provider {
            platform,
            outcome,
            answer,
        }
    }

    #[test]
    fn the_provider_that_is_known_wins() {
        let elsewhere = || provider(None, Outcome::Elsewhere, None);
        let silent = || provider(None, Outcome::Unasked, Some(Err(MetadataError::Status(404))));
        let answers = |platform| provider(Some(platform), Outcome::Unasked, Some(Ok(())));
        let known = |platform| provider(Some(platform), Outcome::Known, None);
        let table = [
            (vec![known(HERE), answers(THERE)], HERE),
            (vec![answers(HERE), known(THERE)], THERE),
            (vec![elsewhere(), answers(THERE)], THERE),
            (vec![silent(), answers(THERE)], THERE),
            (vec![answers(HERE), answers(THERE)], HERE),
        ];
        for (providers, platform) in table {
            let found = detected(providers);
            assert_eq!((found.platform, found.outcome), (Some(platform), Outcome::Known));
        }
    }

    #[test]
    fn a_silent_provider_keeps_what_was_recognised_and_answered() {
        let found = detected([provider(Some(HERE), Outcome::Unasked, None)]);
        assert_eq!(found.platform, Some(HERE));
        assert_eq!(found.outcome, Outcome::Silent(MetadataError::Timeout));
        assert_eq!(found.attributes, [("asked", String::new())]);
    }

    #[test]
    fn without_a_provider_nothing_is_found() {
        assert_eq!(detected([]).platform, None);
    }
}
