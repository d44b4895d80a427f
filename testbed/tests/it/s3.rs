//! S3 servers with the client that workers use.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::buffered::BufWriter;
use object_store::path::Path;
use object_store::{Certificate, ClientOptions, ObjectStore, ObjectStoreExt, RetryConfig};
use testbed::{Authority, Fault, TestS3, Trouble};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

/// A client without retries.
fn client(server: &TestS3, id: &str, secret: &str, bucket: &str, authority: Option<&Authority>) -> AmazonS3 {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut options = ClientOptions::new().with_allow_http(true);
    if let Some(authority) = authority {
        let certificate = Certificate::from_pem(authority.certificate().as_bytes()).unwrap();
        options = options.with_root_certificate(certificate);
    }
    let retry = RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    };
    AmazonS3Builder::new()
        .with_client_options(options)
        .with_retry(retry)
        .with_endpoint(server.url())
        .with_region("eu-west-2")
        .with_access_key_id(id)
        .with_secret_access_key(secret)
        .with_bucket_name(bucket)
        .build()
        .unwrap()
}

fn trusted(server: &TestS3) -> AmazonS3 {
    let (id, secret) = (TestS3::ACCESS_KEY_ID, TestS3::SECRET_ACCESS_KEY);
    client(server, id, secret, TestS3::BUCKET, None)
}

async fn read(client: &AmazonS3, key: &str) -> object_store::Result<Bytes> {
    client.get(&Path::from(key)).await?.bytes().await
}

#[tokio::test]
async fn objects_are_stored_read_copied_listed_and_removed() {
    let server = TestS3::start();
    let client = trusted(&server);
    client
        .put(&Path::from("a/b:c.txt"), "hello".into())
        .await
        .unwrap();
    server.put("dalston-artifacts/a/b/d.txt", "deep");
    server.put("dalston-artifacts/z", "last");

    assert_eq!(
        server.get("dalston-artifacts/a/b:c.txt").unwrap().content,
        "hello"
    );
    assert_eq!(client.head(&Path::from("a/b:c.txt")).await.unwrap().size, 5);
    assert_eq!(
        client.get_range(&Path::from("a/b:c.txt"), 1..3).await.unwrap(),
        "el"
    );
    client
        .copy(&Path::from("z"), &Path::from("a/copy"))
        .await
        .unwrap();
    assert_eq!(read(&client, "a/copy").await.unwrap(), "last");

    let all: Vec<_> = client.list(Some(&Path::from("a"))).try_collect().await.unwrap();
    let keys: Vec<&str> = all.iter().map(|meta| meta.location.as_ref()).collect();
    assert_eq!(keys, ["a/b/d.txt", "a/b:c.txt", "a/copy"]);
    let level = client.list_with_delimiter(None).await.unwrap();
    assert_eq!(
        (level.common_prefixes, level.objects.len()),
        (vec![Path::from("a")], 1)
    );

    client.delete(&Path::from("a/copy")).await.unwrap();
    let gone = read(&client, "a/copy").await.unwrap_err();
    assert!(matches!(gone, object_store::Error::NotFound { .. }), "{gone}");
    assert_eq!(server.keys("dalston-artifacts"), ["a/b/d.txt", "a/b:c.txt", "z"]);
    assert!(server.requests() >= 9, "{}", server.requests());
}

#[tokio::test]
async fn lists_of_several_pages_have_each_key_and_folder_once() {
    let server = TestS3::start();
    let client = trusted(&server);
    for number in 0..1500 {
        server.put(&format!("dalston-artifacts/jobs/{number:04}/x"), "");
        server.put(&format!("dalston-artifacts/jobs/{number:04}/y"), "");
    }
    let all: Vec<_> = client.list(None).try_collect().await.unwrap();
    assert_eq!(all.len(), 3000);
    let level = client
        .list_with_delimiter(Some(&Path::from("jobs")))
        .await
        .unwrap();
    let folders = level.common_prefixes;
    assert_eq!(folders.len(), 1500);
}

#[tokio::test]
async fn large_file_is_uploaded_in_parts() {
    let server = TestS3::start();
    let client = Arc::new(trusted(&server));
    let content: Vec<u8> = (0..12_000_000_u32).map(|index| (index % 251) as u8).collect();
    let mut writer = BufWriter::new(client, Path::from("large.wav"));
    writer.write_all(&content).await.unwrap();
    writer.shutdown().await.unwrap();
    let stored = server.get("dalston-artifacts/large.wav").unwrap();
    assert!(stored.content == content, "{} bytes", stored.content.len());
    assert!(
        server.requests() >= 4,
        "an upload in parts: {}",
        server.requests()
    );
}

#[tokio::test]
async fn wrong_keys_and_missing_objects_are_refused() {
    let server = TestS3::start();
    server.put("dalston-artifacts/x", "hello");
    let (id, secret) = (TestS3::ACCESS_KEY_ID, TestS3::SECRET_ACCESS_KEY);
    let table = [
        ("stranger", secret, TestS3::BUCKET, "InvalidAccessKeyId"),
        (id, "wrong", TestS3::BUCKET, "SignatureDoesNotMatch"),
        (id, secret, "no-bucket", "NoSuchBucket"),
    ];
    for (id, secret, bucket, expected) in table {
        let error = read(&client(&server, id, secret, bucket, None), "x")
            .await
            .unwrap_err();
        assert!(format!("{error:?}").contains(expected), "{expected}: {error:?}");
    }
    let error = read(&trusted(&server), "y").await.unwrap_err();
    assert!(format!("{error:?}").contains("NoSuchKey"), "{error:?}");
}

#[tokio::test]
async fn client_that_trusts_the_authority_connects_over_https() {
    let authority = Authority::new();
    let server = TestS3::start_tls(&authority);
    server.put("dalston-artifacts/x", "hello");
    assert!(server.url().starts_with("https://"), "{}", server.url());
    let (id, secret) = (TestS3::ACCESS_KEY_ID, TestS3::SECRET_ACCESS_KEY);
    let trusting = client(&server, id, secret, TestS3::BUCKET, Some(&authority));
    assert_eq!(read(&trusting, "x").await.unwrap(), "hello");
    assert!(read(&trusted(&server), "x").await.is_err());
}

#[tokio::test]
async fn faults_apply_to_the_selected_requests() {
    let server = TestS3::start();
    let client = trusted(&server);
    server.put("dalston-artifacts/x", "hello");
    server.put("dalston-artifacts/y", "hello");

    server.trouble(Trouble::new(Fault::SLOW_DOWN).method("GET").path("/x").times(2));
    for _ in 0..2 {
        let error = read(&client, "x").await.unwrap_err();
        assert!(format!("{error:?}").contains("SlowDown"), "{error:?}");
        assert_eq!(read(&client, "y").await.unwrap(), "hello");
    }
    assert_eq!(read(&client, "x").await.unwrap(), "hello");

    server.trouble(Trouble::new(Fault::INTERNAL_ERROR).fraction(0.5));
    let mut failed = 0;
    for _ in 0..100 {
        failed += u32::from(read(&client, "x").await.is_err());
    }
    assert!((20..80).contains(&failed), "{failed} of 100");
    server.heal();
    assert_eq!(read(&client, "x").await.unwrap(), "hello");
}

#[tokio::test]
async fn answers_can_be_truncated_lost_late_or_missing() {
    let server = TestS3::start();
    let client = trusted(&server);
    server.put("dalston-artifacts/x", "hello world");

    server.trouble(Trouble::new(Fault::Truncate(5)).times(1));
    let found = client.get(&Path::from("x")).await.unwrap();
    assert_eq!(found.meta.size, 11);
    let mut chunks = found.into_stream();
    assert_eq!(chunks.try_next().await.unwrap().unwrap(), "hello");
    assert!(chunks.try_next().await.is_err());

    server.trouble(Trouble::new(Fault::Cut).times(1));
    assert!(client.put(&Path::from("new"), "1".into()).await.is_err());
    assert_eq!(server.keys("dalston-artifacts"), ["x"]);
    server.trouble(Trouble::new(Fault::LoseAnswer).times(1));
    assert!(client.put(&Path::from("new"), "1".into()).await.is_err());
    assert_eq!(server.keys("dalston-artifacts"), ["new", "x"]);

    let late = Duration::from_millis(300);
    server.trouble(Trouble::new(Fault::Delay(late)).times(1));
    let started = std::time::Instant::now();
    read(&client, "x").await.unwrap();
    assert!(started.elapsed() >= late, "{:?}", started.elapsed());

    server.trouble(Trouble::new(Fault::Hang).times(1));
    assert!(
        timeout(Duration::from_millis(300), read(&client, "x"))
            .await
            .is_err()
    );
    assert_eq!(read(&client, "x").await.unwrap(), "hello world");
}
