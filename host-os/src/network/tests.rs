use super::*;
use installer::network::{Static4, Static6};
use proptest::prelude::*;

/// A kernel that does what it is told, and says what it cannot do.
#[derive(Debug, Clone)]
struct Model(Vec<Found>);

impl Model {
    fn get(&mut self, name: &str) -> &mut Found {
        self.0.iter_mut().find(|found| found.name == name).unwrap_or_else(|| panic!("no interface {name}"))
    }

    fn make(&mut self, name: &str) {
        assert!(!self.0.iter().any(|found| found.name == name), "{name} twice");
        let index = self.0.len() as u32 + 1;
        self.0.push(Found { index, name: name.into(), ..Found::default() });
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Bond { name, .. } => self.make(name),
            Change::Vlan { name, parent, .. } => {
                self.get(parent);
                self.make(name);
            }
            Change::Join { name, master } => {
                let index = self.get(master).index;
                let part = self.get(name);
                assert!(!master.starts_with("bond") || !part.up, "the kernel bonds what is off");
                part.master = index;
            }
            Change::Switch { name, on } => self.get(name).up = *on,
            Change::Setting { name, .. } => drop(self.get(name).clone()),
            Change::Add { name, address, prefix } => {
                let found = self.get(name);
                assert!(!found.addresses.iter().any(|have| have.address == *address), "{address} is there");
                found.addresses.push(Address { address: *address, prefix: *prefix, advertised: false });
            }
            Change::Remove { name, address, prefix } => {
                let addresses = &mut self.get(name).addresses;
                let before = addresses.len();
                addresses.retain(|have| (have.address, have.prefix) != (*address, *prefix));
                assert_eq!(addresses.len() + 1, before, "{address} is not there");
            }
            Change::Route { name, gateway } => {
                let found = self.get(name);
                assert!(found.up, "the kernel routes over what is on");
                found.gateways.push(Gateway { address: *gateway, advertised: false });
            }
            Change::Unroute { name, gateway } => {
                let gateways = &mut self.get(name).gateways;
                let at = gateways.iter().position(|have| have.address == *gateway).unwrap();
                gateways.remove(at);
            }
        }
    }
}

fn six() -> impl Strategy<Value = IpAddr> {
    (1..5_u16).prop_map(|last| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]))
}

fn addresses() -> impl Strategy<Value = Vec<Address>> {
    let four = (1..4_u8).prop_map(|last| IpAddr::from([192, 0, 2, last]));
    proptest::collection::btree_map(prop_oneof![six(), four], (any::<bool>(), 20..33_u8), 0..4).prop_map(
        |map| {
            map.into_iter()
                .map(|(address, (advertised, prefix))| Address { address, prefix, advertised })
                .collect()
        },
    )
}

fn cards() -> impl Strategy<Value = Vec<Found>> {
    let card = (
        any::<bool>(),
        any::<bool>(),
        addresses(),
        proptest::collection::btree_map(six(), any::<bool>(), 0..3),
    );
    proptest::collection::vec(card, 4).prop_map(|cards| {
        let numbered = cards.into_iter().zip(1_u8..);
        numbered
            .map(|((up, carrier, addresses, gateways), number)| Found {
                index: number.into(),
                name: format!("eth{number}"),
                mac: [2, 0, 0, 0, 0, number],
                card: true,
                up,
                carrier,
                master: 0,
                addresses,
                gateways: gateways
                    .into_iter()
                    .map(|(address, advertised)| Gateway { address, advertised })
                    .collect(),
            })
            .collect()
    })
}

fn link(devices: Vec<&'static str>) -> impl Strategy<Value = Link> {
    let several = devices.len() > 1;
    let ipv6 = prop_oneof![
        Just(Ipv6::RouterAdvertisement),
        (six(), any::<bool>()).prop_map(|(address, routed)| {
            let IpAddr::V6(address) = address else { unreachable!() };
            let gateway = routed.then_some("fe80::1".parse().unwrap());
            Ipv6::Static(Static6 { address, prefix: 64, gateway })
        }),
    ];
    let ipv4 = proptest::option::of((1..4_u8).prop_map(|last| Static4 {
        address: [192, 0, 2, last].into(),
        prefix: 24,
        gateway: Some([192, 0, 2, 254].into()),
    }));
    let bond = prop_oneof![Just(Bond::ActiveBackup), Just(Bond::Lacp)];
    (ipv6, ipv4, proptest::option::of(1..4095_u16), proptest::option::of(bond)).prop_map(
        move |(ipv6, ipv4, vlan, bond)| Link {
            devices: devices.iter().map(|name| (*name).to_owned()).collect(),
            bond: bond.or(several.then_some(Bond::ActiveBackup)),
            vlan,
            ipv6,
            ipv4,
        },
    )
}

fn network() -> impl Strategy<Value = Network> {
    let uplink = prop_oneof![link(vec!["02:00:00:00:00:01"]), link(vec!["eth1", "02:00:00:00:00:02"])];
    let management = proptest::option::of(link(vec!["eth3"]));
    (uplink, management).prop_map(|(uplink, management)| Network {
        uplink,
        management,
        time: Vec::new(),
        nts: Vec::new(),
    })
}

proptest! {
    /// From whatever was there, one round of changes leads to what is configured, and then nothing is left to do; what
    /// gets lost on the way comes back.
    #[test]
    fn what_is_configured_comes_true(network in network(), cards in cards(), lost in 0..8_usize) {
        let mut kernel = Model(cards);
        let changes = plan(&network, &kernel.0).unwrap();
        changes.iter().for_each(|change| kernel.apply(change));
        prop_assert_eq!(plan(&network, &kernel.0).unwrap(), vec![]);
        let name = interface(&network, &kernel.0, false).unwrap();
        let top = kernel.get(&name).clone();
        prop_assert!(top.up);
        let wanted: Vec<IpAddr> = match &network.uplink.ipv6 {
            Ipv6::Static(six) => vec![six.address.into()],
            Ipv6::RouterAdvertisement => vec![],
        };
        let wanted = wanted.into_iter().chain(network.uplink.ipv4.map(|four| four.address.into()));
        for address in wanted {
            prop_assert!(top.addresses.iter().any(|have| have.address == address), "{} is missing", address);
        }
        if matches!(network.uplink.ipv6, Ipv6::Static(_)) {
            let others = top.addresses.iter().filter(|have| have.address.is_ipv6()).count();
            prop_assert_eq!(others, 1, "somebody else's address stayed: {:?}", top.addresses);
        }
        // A card that is not named stays as it is.
        let other = kernel.get("eth4").clone();
        prop_assert!(!changes.iter().any(|change| format!("{change:?}").contains("eth4")), "{other:?}");

        let victim = lost % kernel.0.len();
        kernel.0[victim].addresses.clear();
        kernel.0[victim].gateways.clear();
        kernel.0[victim].up = false;
        for change in plan(&network, &kernel.0).unwrap() {
            kernel.apply(&change);
        }
        prop_assert_eq!(plan(&network, &kernel.0).unwrap(), vec![]);
    }
}

#[test]
fn without_a_configuration_the_first_card_with_a_cable_is_used() {
    let card = |name: &str, carrier| Found { name: name.into(), card: true, carrier, ..Found::default() };
    assert_eq!(automatic(&[Found { name: "lo".into(), ..Found::default() }]), Err(NetworkError::NoCard));
    let found = [card("eth0", false), card("eth1", true)];
    assert_eq!(automatic(&found).unwrap().uplink.devices, ["eth1"]);
    assert_eq!(automatic(&found[..1]).unwrap().uplink.devices, ["eth0"]);
    let error = card_error(&found);
    assert!(error.contains("eth7") && error.contains("eth0 (00:00:00:00:00:00), eth1"), "{error}");
}

fn card_error(found: &[Found]) -> String {
    let mut network = automatic(found).unwrap();
    network.uplink.devices = vec!["eth7".into()];
    plan(&network, found).unwrap_err().to_string()
}

/// What is not followed is set before the interface is on: an advertisement may come in the same moment.
#[test]
fn bounds_are_set_before_anything_can_be_heard() {
    let card = Found { name: "eth0".into(), card: true, ..Found::default() };
    for (ipv6, accept) in [
        (Ipv6::RouterAdvertisement, 1),
        (Ipv6::Static(Static6 { address: "2001:db8::1".parse().unwrap(), prefix: 64, gateway: None }), 0),
    ] {
        let mut network = automatic(std::slice::from_ref(&card)).unwrap();
        network.uplink.ipv6 = ipv6;
        let changes = plan(&network, std::slice::from_ref(&card)).unwrap();
        let on = changes.iter().position(|change| matches!(change, Change::Switch { on: true, .. })).unwrap();
        let set = |wanted: &str| {
            changes[..on].iter().find_map(|change| match change {
                Change::Setting { key, value, .. } if *key == wanted => Some(*value),
                _ => None,
            })
        };
        assert_eq!((set("accept_ra"), set("autoconf")), (Some(accept), Some(accept)));
        assert_eq!((set("accept_redirects"), set("max_addresses")), (Some(0), Some(MAX_ADDRESSES)));
    }
}
