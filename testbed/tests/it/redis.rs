//! Redis servers with the client that workers use.

use testbed::{Authority, Fsync, TestRedis};

#[tokio::test]
async fn acknowledged_writes_survive_a_kill_with_fsync_always() {
    let redis = TestRedis::with().append_only(Fsync::Always).start().await;
    let url = redis.url();
    let () = redis.send(&["SET", "key", "value"]).await;
    redis.kill();
    redis.restart().await;
    assert_eq!(redis.url(), url);
    assert_eq!(redis.send::<String>(&["GET", "key"]).await, "value");

    let volatile = TestRedis::start().await;
    let () = volatile.send(&["SET", "key", "value"]).await;
    volatile.kill();
    volatile.restart().await;
    assert_eq!(volatile.send::<Option<String>>(&["GET", "key"]).await, None);
}

#[tokio::test]
async fn server_requires_the_login_of_its_url() {
    let with_password = TestRedis::with().password("hunter2").start().await;
    let with_user = TestRedis::with()
        .password("other")
        .user("worker", "hunter2")
        .start()
        .await;
    assert!(
        with_user.url().starts_with("redis://worker:hunter2@"),
        "{}",
        with_user.url()
    );
    for redis in [with_password, with_user] {
        assert_eq!(redis.send::<String>(&["PING"]).await, "PONG");
        assert!(ping(&redis.url()).await.is_ok());
        let without_login = format!("redis://127.0.0.1:{}", redis.port());
        let error = ping(&without_login).await.unwrap_err();
        assert!(error.to_string().contains("NOAUTH"), "{error}");
    }
}

#[tokio::test]
async fn client_that_trusts_the_authority_connects_over_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let authority = Authority::new();
    let redis = TestRedis::with().tls(&authority).start().await;
    assert!(redis.url().starts_with("rediss://127.0.0.1:"), "{}", redis.url());
    assert!(ping(&redis.url()).await.is_err());
    let root_cert = Some(authority.certificate().into());
    let certificates = redis::TlsCertificates {
        client_tls: None,
        root_cert,
    };
    let client = redis::Client::build_with_tls(redis.url(), certificates).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let () = redis::cmd("PING").query_async(&mut connection).await.unwrap();
}

async fn ping(url: &str) -> redis::RedisResult<()> {
    let client = redis::Client::open(url)?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    redis::cmd("PING").query_async(&mut connection).await
}
