//! With the client that workers use.

use testbed::{Authority, Fsync, TestRedis};

#[tokio::test]
async fn what_was_answered_outlives_a_kill_if_it_is_written_at_once() {
    let redis = TestRedis::with().append_only(Fsync::Always).start().await;
    let url = redis.url();
    let () = redis.send(&["SET", "key", "value"]).await;
    redis.kill();
    redis.restart().await;
    assert_eq!(redis.url(), url);
    assert_eq!(redis.send::<String>(&["GET", "key"]).await, "value");

    let forgetful = TestRedis::start().await;
    let () = forgetful.send(&["SET", "key", "value"]).await;
    forgetful.kill();
    forgetful.restart().await;
    assert_eq!(forgetful.send::<Option<String>>(&["GET", "key"]).await, None);
}

#[tokio::test]
async fn a_password_or_a_user_is_asked_for_and_stands_in_the_url() {
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
        let stranger = format!("redis://127.0.0.1:{}", redis.port());
        let error = ping(&stranger).await.unwrap_err();
        assert!(error.to_string().contains("NOAUTH"), "{error}");
    }
}

#[tokio::test]
async fn tls_works_for_whoever_trusts_the_authority() {
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
