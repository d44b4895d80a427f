//! Recordings that a request names by URL.
//!
//! Every client that reaches the port can make the worker fetch a URL. So the worker fetches
//! `s3://` through its own storage, and `http://` and `https://` from any address except those at
//! which cloud machines find their credentials. Private networks and this machine are allowed,
//! because a deployment's own storage is usually there. The content is never part of a response:
//! the engine only uses it as audio.

use std::error::Error;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Client, Response};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use url::{Host, Url};

use super::form::{Recording, local_name, quoted};
use super::refusal::Refusal;
use crate::error::chain;
use crate::store::Store;

const FIELD: &str = "audio_url";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The limit for a response to begin, and for each pause in it.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_REDIRECTS: usize = 5;

/// Fetches recordings of up to `limit` bytes.
#[derive(Debug)]
pub(super) struct Fetcher {
    /// Built on first use, because that reads the certificates of the system.
    client: LazyLock<Result<Client, String>>,
    limit: u64,
}

impl Fetcher {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            client: LazyLock::new(|| client().map_err(|error| chain(&error))),
            limit,
        }
    }

    /// Downloads the recording at `url` to `directory`.
    pub(super) async fn fetch(
        &self,
        url: &str,
        directory: &Path,
        store: &Store,
    ) -> Result<Recording, Refusal> {
        if url.starts_with("s3://") {
            let path = directory.join(local_name("download", url));
            let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
            let fetched = store.fetch_up_to(url, &path, limit).await;
            fetched.map_err(|error| Refusal::from_store_error(&error))?;
            return Ok(Recording {
                name: url.to_owned(),
                path,
            });
        }
        let parsed = Url::parse(url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https"));
        let Some(url) = parsed else {
            let problem = format!("{}: expected s3://bucket/key, http:// or https://", quoted(url));
            return Err(Refusal::field(FIELD, problem));
        };
        let name = name_of(&url);
        if let Err(forbidden) = check(&url) {
            let problem = format_args!("{name} can't be fetched: {forbidden}");
            return Err(Refusal::field(FIELD, problem));
        }
        let client = match &*self.client {
            Ok(client) => client,
            Err(error) => return Err(Refusal::internal("client", error)),
        };
        let path = directory.join(local_name("download", url.path()));
        let failed = |error: reqwest::Error| {
            let error = error.without_url();
            // Only for the log: it would tell clients which ports of other machines are open.
            tracing::info!(error = chain(&error), "recording_not_fetched");
            Refusal::field(FIELD, format_args!("{name} can't be fetched: {}", reason(&error)))
        };
        let response = client.get(url).send().await.map_err(failed)?;
        if !response.status().is_success() {
            let problem = format!("{name} responded with status {}", response.status().as_u16());
            return Err(Refusal::field(FIELD, problem));
        }
        self.save(response, &path).await?.map_err(failed)?;
        Ok(Recording { name, path })
    }

    async fn save(&self, mut response: Response, path: &Path) -> Result<Result<(), reqwest::Error>, Refusal> {
        let too_large = || Refusal {
            field: Some(FIELD),
            ..Refusal::too_large(self.limit)
        };
        if response
            .content_length()
            .is_some_and(|length| length > self.limit)
        {
            return Err(too_large());
        }
        let mut file = File::create(path).await?;
        let mut room = self.limit;
        loop {
            match response.chunk().await {
                Ok(Some(bytes)) => {
                    room = room.checked_sub(bytes.len() as u64).ok_or_else(too_large)?;
                    file.write_all(&bytes).await?;
                }
                Ok(None) => break,
                Err(error) => return Ok(Err(error)),
            }
        }
        file.flush().await?;
        Ok(Ok(()))
    }
}

fn client() -> Result<Client, reqwest::Error> {
    crate::tls::use_ring();
    Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .redirect(Policy::custom(follow))
        .referer(false)
        .dns_resolver(FilteringResolver)
        // The addresses that a proxy connects to can't be checked.
        .no_proxy()
        .build()
}

/// Follows a redirect to any URL that a request may name.
fn follow(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    if attempt.previous().len() > MAX_REDIRECTS {
        return attempt.error(ForbiddenUrl("it redirects too often"));
    }
    match check(attempt.url()) {
        Ok(()) => attempt.follow(),
        Err(forbidden) => attempt.error(forbidden),
    }
}

/// Checks a URL whose host is an address. Names are checked when they are resolved, so the checked
/// address is the used one.
fn check(url: &Url) -> Result<(), ForbiddenUrl> {
    let address = match url.host() {
        None => return Err(ForbiddenUrl("it has no host")),
        Some(Host::Domain(_)) => return Ok(()),
        Some(Host::Ipv4(address)) => IpAddr::V4(address),
        Some(Host::Ipv6(address)) => IpAddr::V6(address),
    };
    if is_forbidden(address) {
        Err(ForbiddenUrl(FORBIDDEN_ADDRESS))
    } else {
        Ok(())
    }
}

const FORBIDDEN_ADDRESS: &str = "this worker does not fetch from its address";

/// Resolves only names whose addresses are all allowed.
struct FilteringResolver;

impl Resolve for FilteringResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let found: Vec<SocketAddr> = found.collect();
            // One forbidden address refuses the name: no legitimate name has such a mixture.
            if found.iter().any(|address| is_forbidden(address.ip())) {
                return Err(ForbiddenUrl(FORBIDDEN_ADDRESS).into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Whether an address is link-local, where most clouds have their metadata, one of the metadata
/// addresses elsewhere, or not the address of a host.
fn is_forbidden(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            const METADATA: [Ipv4Addr; 3] = [
                // Alibaba, Azure, Oracle.
                Ipv4Addr::new(100, 100, 100, 200),
                Ipv4Addr::new(168, 63, 129, 16),
                Ipv4Addr::new(192, 0, 0, 192),
            ];
            address.is_link_local()
                || address.octets()[0] == 0
                || address.is_multicast()
                || address.is_broadcast()
                || METADATA.contains(&address)
        }
        IpAddr::V6(address) => {
            if embedded(address).any(|inner| is_forbidden(IpAddr::V4(inner))) {
                return true;
            }
            let segments = address.segments();
            // Amazon's fd00:ec2::254 and its neighbours, and Google's.
            let metadata = segments[..2] == [0xfd00, 0x0ec2] || segments[..2] == [0xfd20, 0x00ce];
            address.is_unicast_link_local() || address.is_unspecified() || address.is_multicast() || metadata
        }
    }
}

/// The IPv4 addresses that an IPv6 address may lead to: mapped, compatible, translated (RFC 6052,
/// 7915, 8215), ISATAP (RFC 5214) and 6to4 (RFC 3056).
fn embedded(address: Ipv6Addr) -> impl Iterator<Item = Ipv4Addr> {
    let bytes = address.octets();
    // The positions of the four bytes. Byte 8 is never one of them.
    const LAST: [usize; 4] = [12, 13, 14, 15];
    let at: &[[usize; 4]] = match address.segments() {
        // Not `::` and `::1`.
        [0, 0, 0, 0, 0, 0, 0, _] => &[],
        [0, 0, 0, 0, 0 | 0xffff, 0, ..] | [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => {
            &[LAST]
        }
        // The prefix of a network in it may have 48, 56, 64 or 96 bits.
        [0x64, 0xff9b, 1, ..] => &[[6, 7, 9, 10], [7, 9, 10, 11], [9, 10, 11, 12], LAST],
        [0x2002, ..] => &[[2, 3, 4, 5]],
        [_, _, _, _, 0 | 0x200, 0x5efe, ..] => &[LAST],
        _ => &[],
    };
    let found = at.iter().map(move |at| Ipv4Addr::from(at.map(|at| bytes[at])));
    // With several positions, the others are of a shorter prefix and begin with its zeros.
    found.filter(move |address| at.len() == 1 || address.octets()[0] != 0)
}

/// Why a URL is not fetched.
#[derive(Debug)]
struct ForbiddenUrl(&'static str);

impl fmt::Display for ForbiddenUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Error for ForbiddenUrl {}

/// Why a request failed, in the same words whether a port is closed, filtered, silent or that of
/// another protocol.
fn reason(error: &reqwest::Error) -> &'static str {
    let mut cause: Option<&dyn Error> = Some(error);
    while let Some(error) = cause {
        if let Some(forbidden) = error.downcast_ref::<ForbiddenUrl>() {
            return forbidden.0;
        }
        cause = error.source();
    }
    "its server does not answer, or not completely"
}

/// The URL without its parts that may be secret.
fn name_of(url: &Url) -> String {
    const LONGEST: usize = 300;
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // This fails only for a URL without a host.
    let _ = url.set_username("").and_then(|()| url.set_password(None));
    String::from(url).chars().take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_addresses_are_forbidden_in_every_notation() {
        for host in [
            "169.254.169.254",
            "169.254.170.2",
            "2852039166",
            "0xa9fea9fe",
            "0251.0376.0251.0376",
            "[fd00:ec2::254]",
            "[fd00:ec2::23]",
            "[fd20:ce::254]",
            "[fe80::1]",
            "[::ffff:169.254.169.254]",
            "[::169.254.169.254]",
            "[64:ff9b::a9fe:a9fe]",
            "[64:ff9b:1::a9fe:a9fe]",
            "[64:ff9b:1:fffe::a9fe:a9fe]",
            "[64:ff9b:1:a9fe:a9:fe00::]",
            "[64:ff9b:1:a9:fe:a9fe::]",
            "[64:ff9b:1:0:a9:fea9:fe00:0]",
            "[::ffff:0:169.254.169.254]",
            "[fd00::5efe:169.254.169.254]",
            "[2001:db8::200:5efe:169.254.169.254]",
            "[2002:a9fe:a9fe::1]",
            "100.100.100.200",
            "168.63.129.16",
            "0.0.0.0",
            "[::]",
            "224.0.0.1",
            "255.255.255.255",
        ] {
            let url = Url::parse(&format!("http://{host}/latest/meta-data")).unwrap();
            assert!(check(&url).is_err(), "{host}");
        }
        for host in [
            "127.0.0.1",
            "10.0.0.7",
            "192.168.1.5",
            "[::1]",
            "[fd12::1]",
            "[64:ff9b::808:808]",
            "[64:ff9b:1::808:808]",
            "[64:ff9b:1:ffff::a00:1]",
            "[::ffff:0:8.8.8.8]",
            "[fd00::5efe:10.0.0.7]",
            "8.8.8.8",
            "example.com",
        ] {
            let url = Url::parse(&format!("http://{host}/a.wav")).unwrap();
            assert!(check(&url).is_ok(), "{host}");
        }
    }

    #[tokio::test]
    async fn name_with_a_forbidden_address_is_not_resolved() {
        // A name that is an address needs no name server.
        let resolve = |name: &str| FilteringResolver.resolve(name.parse().unwrap());
        assert!(resolve("169.254.169.254").await.is_err());
        assert!(resolve("127.0.0.1").await.is_ok());
    }

    #[test]
    fn name_of_recording_has_no_secrets() {
        let url = Url::parse("https://u:hunter2@host:8443/a/b.wav?X-Amz-Signature=abc#x").unwrap();
        assert_eq!(name_of(&url), "https://host:8443/a/b.wav");
    }
}
