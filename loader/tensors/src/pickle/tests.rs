//! Pickles as torch writes them, and what others may write.

use super::*;

/// The program of a tensor of two rows of three numbers, without its beginning and end.
const TENSOR: &[u8] = b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nHalfStorage\nX\x01\0\0\x007X\x03\0\0\0cpuK\x08tQK\x02K\x02K\x03\x86K\x03K\x01\x86\x89ccollections\nOrderedDict\n)RtR";

fn read(program: &[&[u8]]) -> Outcome<Vec<(String, Rc<Described>)>> {
    found(program).map(|found| found.tensors)
}

fn found(program: &[&[u8]]) -> Outcome<Found> {
    tensors(&[&[&b"\x80\x02"[..]], program, &[&b"."[..]]].concat().concat())
}

fn tensor() -> Described {
    Described {
        storage: "7".into(),
        number: Ok(Number::F16),
        numel: 8,
        offset: 2,
        shape: vec![2, 3],
        strides: vec![3, 1],
    }
}

#[test]
fn tensors_are_found_with_their_names() {
    assert_eq!(read(&[TENSOR]), Ok(vec![(String::new(), Rc::new(tensor()))]));
    assert!(tensor().is_contiguous());
    let turned = Described { strides: vec![1, 2], ..tensor() };
    assert!(!turned.is_contiguous() && turned.is_transposed() && !tensor().is_transposed());
    assert!(!Described { strides: vec![1, 3], ..tensor() }.is_transposed());
    assert!(Described { shape: vec![1, 3], strides: vec![99, 1], ..tensor() }.is_contiguous(), "one row has no next");
    let list = read(&[b"](", TENSOR, TENSOR, b"e"]).unwrap();
    assert_eq!(list.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["0", "1"]);
    let dict = read(&[b"}(X\x01\0\0\0a", TENSOR, b"X\x01\0\0\0b}(K\x05", TENSOR, b"\x8c\x01cNuu"]).unwrap();
    assert_eq!(dict.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a", "b.5"]);
    // Lists are told from tuples and dictionaries, where tensors are their elements.
    assert_eq!(found(&[b"}X\x01\0\0\0a](", TENSOR, TENSOR, b"es"]).unwrap().lists, ["a"]);
    assert_eq!(found(&[b"](", TENSOR, TENSOR, b"e"]).unwrap().lists, [""]);
    for other in [&[b"(", TENSOR, TENSOR, b"t"][..], &[b"}(K\x00", TENSOR, b"K\x01", TENSOR, b"u"], &[b"](K\x01K\x02e"]]
    {
        assert_eq!(found(other).unwrap().lists, [""; 0]);
    }
    // A value that is put aside is the same value.
    assert_eq!(read(&[b"](", TENSOR, b"q\x00h\x00e"]).unwrap().len(), 2);
    // A long integer, and one of a parameter.
    assert_eq!(read(&[b"\x8a\x09\0\0\0\0\0\0\0\0\x01"]), Err(damaged()));
    assert_eq!(
        read(&[b"ctorch._utils\n_rebuild_parameter\n(", TENSOR, b"\x88ccollections\nOrderedDict\n)RtR"]).unwrap().len(),
        1
    );
}

#[test]
fn any_other_name_is_refused_by_name() {
    for (module, name) in
        [("os", "system"), ("torch", "load"), ("torch._utils", "_rebuild_tensor_v3"), ("collections", "Counter")]
    {
        let spelled = format!("c{module}\n{name}\n");
        let error = read(&[spelled.as_bytes()]).unwrap_err();
        assert!(error.contains(&format!("{module}.{name},")), "{error}");
    }
    assert!(read(&[b"\x8c\x02os\x8c\x06system\x93"]).unwrap_err().contains("os.system,"));
    // What executes: objects, instances, extensions, buffers.
    for instruction in
        [0x81u8, 0x92, b'i', b'o', 0x82, 0x83, 0x84, 0x97, b'P', b'S', b'V', b'd', b'l', b'0', b'1', b'2']
    {
        assert!(read(&[&[instruction]]).unwrap_err().contains("instruction"), "{instruction:#x}");
    }
}

#[test]
fn programs_that_make_no_sense_are_refused() {
    for program in [
        &b"t"[..],
        b"e",
        b"R",
        b"Q",
        b"a",
        b"u",
        b"h\x00",
        b"q\x00",
        b"\x85",
        b"K\x01K\x02R",
        b"](K\x01",
        b"}(K\x01u",
        b"K\x01b",
        b"j\xff\xff\xff\xff",
        b"X\xff\xff\xff\xff",
    ] {
        assert!(read(&[program]).is_err(), "{program:?}");
    }
    assert!(tensors(b"").is_err() && tensors(b"\x80").is_err());
    // What lies below a mark is out of reach.
    assert!(read(&[b"K\x01(\x85"]).is_err());
}

/// The instruction of a text.
fn spelled(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

#[test]
fn a_small_program_does_not_become_large() {
    // The name of a storage, which many refer to.
    let storage = |name: &str| {
        [b"(X\x07\0\0\0storagectorch\nHalfStorage\n", &spelled(name)[..], b"X\x03\0\0\0cpuK\x08tq\0Q"].concat()
    };
    assert!(read(&[&storage(&"k".repeat(MAX_NAME)), &b"h\0Q".repeat(100)]).is_ok());
    let error = read(&[&storage(&"k".repeat(MAX_NAME + 1))]).unwrap_err();
    assert!(error.contains("the name of a storage has 1025 bytes"), "{error}");

    // A million tensors that share a list, under names of 13 KiB; a hundred of them are read.
    let named = |levels: u8| {
        let mut program = [TENSOR, b"q\0"].concat();
        for level in 0..levels {
            program.extend([&b"]("[..], &[b'h', level].repeat(100), &[b'e', b'q', level + 1]].concat());
        }
        for level in levels..levels + 13 {
            program
                .extend([&b"}"[..], &spelled(&"n".repeat(MAX_NAME)), &[b'h', level, b's', b'q', level + 1]].concat());
        }
        program
    };
    assert_eq!(read(&[&named(1)]).unwrap().len(), 100);
    let error = read(&[&named(3)]).unwrap_err();
    assert!(error.contains("the names and shapes of its tensors take more than 32 MiB"), "{error}");

    // One tensor's arguments, of which another tensor of many dimensions is made again and again.
    let dimensions = [&b"("[..], &b"K\x01".repeat(MAX_ITEMS), b"t"].concat();
    let arguments =
        [&b"ctorch._utils\n_rebuild_tensor_v2\nq\x01("[..], &storage("7"), b"K\0", &dimensions, &dimensions, b"tq\x02"]
            .concat();
    let again = b"h\x01h\x02R";
    assert!(read(&[&arguments, &again.repeat(100)]).is_ok());
    let error = read(&[&arguments, &again.repeat(40_000)]).unwrap_err();
    assert!(error.contains("names and shapes"), "{error}");
}
