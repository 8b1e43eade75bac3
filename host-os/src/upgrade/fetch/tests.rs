use super::*;

/// A server that answers each path with this.
async fn server(answer: impl Fn(&str) -> (u16, Vec<u8>) + Send + 'static) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = vec![0; 4096];
            let length = stream.read(&mut head).await.unwrap();
            let head = String::from_utf8_lossy(&head[..length]).into_owned();
            let (code, body) = answer(head.split(' ').nth(1).unwrap_or_default());
            let head = format!("HTTP/1.1 {code} X\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
        }
    });
    format!("http://{address}")
}

fn source(urls: &[&str]) -> Source {
    let mirrors = urls[1..].iter().map(|url| (*url).to_owned()).collect();
    Source { manifest: format!("{}/manifest.json", urls[0]), mirrors, bytes_per_second: None }
}

#[tokio::test]
async fn a_document_is_not_there_only_if_every_server_says_so() {
    let without = server(|path| (if path == "/broken" { 500 } else { 404 }, Vec::new())).await;
    let closed = server(|_| (403, Vec::new())).await;
    let with = server(|_| (200, b"root".to_vec())).await;
    let ask = async |urls: &[&str], name: &str| {
        beside_if_there(&source(urls), name, 100).await.map_err(|error| error.code())
    };
    assert_eq!(ask(&[&without, &closed], "2.root.json").await, Ok(None));
    assert_eq!(ask(&[&without, &with], "2.root.json").await, Ok(Some(b"root".to_vec())));
    assert_eq!(ask(&[&without, &closed], "broken").await, Err("fetch-failed"));
    assert_eq!(ask(&["http://127.0.0.1:1"], "2.root.json").await, Err("fetch-failed"));
    assert_eq!(ask(&["file:///nowhere"], "2.root.json").await, Ok(None));
    let long = server(|_| (200, vec![0; 200])).await;
    assert_eq!(ask(&[&long], "2.root.json").await, Err("fetch-failed"));
}

#[tokio::test]
async fn what_is_fetched_keeps_to_its_rate() {
    let content = vec![7; 40_000];
    let served = content.clone();
    let url = server(move |_| (200, served.clone())).await;
    let wanted = File::describe("file", &content);
    let directory = tempfile::tempdir().unwrap();
    for (rate, least) in [(None, 0), (Some(40_000), 900)] {
        let source = Source { bytes_per_second: rate, ..source(&[&url]) };
        let least = Duration::from_millis(least);
        let began = Instant::now();
        beside(&source, "delta", 100_000).await.unwrap();
        assert!(began.elapsed() >= least, "{:?}", began.elapsed());
        let began = Instant::now();
        file(&source, &wanted, None, &directory.path().join(format!("{rate:?}")), &|_| ()).await.unwrap();
        assert!(began.elapsed() >= least, "{:?}", began.elapsed());
    }
}
