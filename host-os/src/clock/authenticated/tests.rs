use super::super::ntp::LENGTH;
use super::*;
use crate::network::namespace::skip;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use std::process::{Command, Stdio};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn certificate(authority: &Authority) -> (rcgen::Certificate, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["time.example".into()]).unwrap();
    (params.signed_by(&key, authority).unwrap(), key)
}

/// What a server does wrong.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    OtherKeys,
    NoCookiesAgain,
    Plain,
}

/// A server whose clock is wrong by `error` seconds.
async fn server(authority: &Authority, error: f64, fault: Fault) -> Nts {
    let (certificate, key) = certificate(authority);
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let time = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (port, time_port) = (listener.local_addr().unwrap().port(), time.local_addr().unwrap().port());
    // Cookies name the session.
    let sessions = Arc::new(std::sync::Mutex::new(Vec::<Keys>::new()));
    let made = sessions.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = TlsAcceptor::from(Arc::new(config.clone())).accept(stream).await else {
                continue;
            };
            let mut request = vec![0; nts::request().len()];
            stream.read_exact(&mut request).await.unwrap();
            assert_eq!(request, nts::request());
            let key = |to_client| {
                stream
                    .get_ref()
                    .1
                    .export_keying_material([0; 32], LABEL, Some(&nts::context(to_client)))
                    .unwrap()
            };
            let mut keys = Keys { to_server: key(false), to_client: key(true) };
            if fault == Fault::OtherKeys {
                keys.to_client = [0; 32];
            }
            let number = {
                let mut made = made.lock().unwrap();
                made.push(keys);
                made.len() as u8 - 1
            };
            let cookies = vec![vec![number; 64]; 2];
            stream.write_all(&nts::tests::offer(&cookies, time_port)).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    tokio::spawn(async move {
        let mut question = [0; 2048];
        loop {
            let (length, from) = time.recv_from(&mut question).await.unwrap();
            let question = &question[..length];
            // The cookie is the second field; its head has four bytes.
            let session = usize::from(question[LENGTH + 36 + 4]);
            let keys = sessions.lock().unwrap()[session].clone();
            let mut header = [0; LENGTH];
            (header[0], header[1]) = (4 << 3 | 4, 1);
            header[24..32].copy_from_slice(&question[40..48]);
            let now = super::super::keeper::now() + error + 2_208_988_800.0;
            for at in [32, 40] {
                header[at..at + 4].copy_from_slice(&(now as u32).to_be_bytes());
                header[at + 4..at + 8]
                    .copy_from_slice(&((now.fract() * 4_294_967_296.0) as u32).to_be_bytes());
            }
            let cookies = if fault == Fault::NoCookiesAgain { vec![] } else { vec![vec![session as u8; 64]] };
            let answer = match fault {
                Fault::Plain => header.to_vec(),
                _ => nts::tests::serve(question, header, &keys, &cookies).unwrap(),
            };
            // First a lie of somebody on the way, who cannot authenticate it.
            let mut forged = answer.clone();
            forged[35] ^= 1;
            time.send_to(&forged, from).await.unwrap();
            time.send_to(&answer, from).await.unwrap();
        }
    });
    Nts {
        address: Ipv4Addr::LOCALHOST.into(),
        port: Some(port),
        name: "time.example".into(),
        authority: authority.pem(),
    }
}

#[tokio::test]
async fn authentic_time_is_asked_for_again_and_again_with_the_cookies_that_came() {
    let authority = authority();
    for fault in [Fault::None, Fault::NoCookiesAgain] {
        let mut servers = vec![Server::new(&server(&authority, 3.0, fault).await)];
        for _ in 0..5 {
            let found = round(&mut servers).await.unwrap();
            assert!((found.offset - 3.0).abs() < 0.5, "{found:?}");
        }
        let left = servers[0].session.as_ref().map_or(0, |session| session.cookies.len());
        assert_eq!(left, if fault == Fault::None { 2 } else { 1 });
    }
}

#[tokio::test]
async fn nobody_else_is_believed() {
    let (own, other) = (authority(), authority());
    let good = server(&own, 0.0, Fault::None).await;
    for (what, server) in [
        ("another authority", Nts { authority: other.pem(), ..good.clone() }),
        ("no authority", Nts { authority: String::new(), ..good.clone() }),
        ("another name", Nts { name: "time.example.org".into(), ..good.clone() }),
        ("another's answers", server(&own, 0.0, Fault::OtherKeys).await),
        ("plain answers", server(&own, 0.0, Fault::Plain).await),
    ] {
        assert_eq!(round(&mut vec![Server::new(&server)]).await, None, "{what}");
    }
    // Of three, two agree on the time.
    let liar = server(&own, 86_400.0, Fault::None).await;
    let mut servers = [&good, &liar, &good].map(Server::new).into();
    let found = round(&mut servers).await.unwrap();
    assert!(found.members == 2 && found.offset.abs() < 0.5, "{found:?}");
    assert_eq!(round(&mut [&good, &liar].map(Server::new).into()).await, None);
}

/// Somebody else's server: chrony.
#[tokio::test]
async fn chrony_is_understood() {
    let Some(chronyd) = ["/usr/sbin/chronyd", "/usr/bin/chronyd"]
        .into_iter()
        .find(|path| std::path::Path::new(path).exists())
    else {
        return skip("chronyd is not installed");
    };
    let authority = authority();
    let (certificate, key) = certificate(&authority);
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("certificate.pem"), certificate.pem()).unwrap();
    std::fs::write(path("key.pem"), key.serialize_pem()).unwrap();
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (port, time_port) = (free(), free());
    let config = format!(
        "port {time_port}\nntsport {port}\nntsserverkey {}\nntsservercert {}\nlocal stratum 1\nallow all\ncmdport 0\n\
         bindaddress 127.0.0.1\nntsdumpdir {}\npidfile {}\nbindcmdaddress /\n",
        path("key.pem"),
        path("certificate.pem"),
        dir.path().display(),
        path("pid")
    );
    std::fs::write(path("chrony.conf"), config).unwrap();
    let log = std::fs::File::create(path("log")).unwrap();
    let mut chronyd = Command::new(chronyd)
        // In the foreground, as this user, without touching the clock.
        .args(["-d", "-x", "-U", "-u", "root", "-f", &path("chrony.conf")])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let server = Nts {
        address: Ipv4Addr::LOCALHOST.into(),
        port: Some(port),
        name: "time.example".into(),
        authority: authority.pem(),
    };
    let mut servers = vec![Server::new(&server)];
    let end = Instant::now() + Duration::from_secs(20);
    let mut found = None;
    while found.is_none() && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(200)).await;
        found = round(&mut servers).await;
    }
    let again = round(&mut servers).await;
    let cookies = servers[0].session.as_ref().map(|session| session.cookies.len());
    chronyd.kill().unwrap();
    chronyd.wait().unwrap();
    let said = std::fs::read_to_string(path("log")).unwrap();
    assert!(found.is_some_and(|found| found.offset.abs() < 0.5), "{found:?}: {said}");
    assert!(again.is_some(), "{said}");
    assert_eq!(cookies, Some(8), "each answer brings a new one");
}
