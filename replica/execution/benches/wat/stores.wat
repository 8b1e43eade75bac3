;; The worst for marks: loops that do nothing but store.
(module
    (import "ic0" "msg_reply" (func $reply))
    (memory WIDTH 1024)
    ;; One word after the other.
    (func (export "canister_update dense")
        (local $at WIDTH) (local $round i32)
        (loop $again
            (local.set $at (WIDTH.const 0))
            (loop $next
                (i64.store (local.get $at) (i64.const 1))
                (local.set $at (WIDTH.add (local.get $at) (WIDTH.const 8)))
                (br_if $next (WIDTH.lt_u (local.get $at) (WIDTH.const 4194304))))
            (local.set $round (i32.add (local.get $round) (i32.const 1)))
            (br_if $again (i32.lt_u (local.get $round) (i32.const 20))))
        (call $reply))
    ;; Eight fields of one object after the other.
    (func (export "canister_update fields")
        (local $at WIDTH) (local $round i32)
        (loop $again
            (local.set $at (WIDTH.const 0))
            (loop $next
                (i64.store offset=0 (local.get $at) (i64.const 1))
                (i64.store offset=8 (local.get $at) (i64.const 2))
                (i64.store offset=16 (local.get $at) (i64.const 3))
                (i64.store offset=24 (local.get $at) (i64.const 4))
                (i64.store offset=32 (local.get $at) (i64.const 5))
                (i64.store offset=40 (local.get $at) (i64.const 6))
                (i64.store offset=48 (local.get $at) (i64.const 7))
                (i64.store offset=56 (local.get $at) (i64.const 8))
                (local.set $at (WIDTH.add (local.get $at) (WIDTH.const 64)))
                (br_if $next (WIDTH.lt_u (local.get $at) (WIDTH.const 4194304))))
            (local.set $round (i32.add (local.get $round) (i32.const 1)))
            (br_if $again (i32.lt_u (local.get $round) (i32.const 20))))
        (call $reply))
    ;; Read, change, write.
    (func (export "canister_update update")
        (local $at WIDTH) (local $round i32)
        (loop $again
            (local.set $at (WIDTH.const 0))
            (loop $next
                (i64.store (local.get $at) (i64.add (i64.load (local.get $at)) (i64.const 1)))
                (local.set $at (WIDTH.add (local.get $at) (WIDTH.const 8)))
                (br_if $next (WIDTH.lt_u (local.get $at) (WIDTH.const 4194304))))
            (local.set $round (i32.add (local.get $round) (i32.const 1)))
            (br_if $again (i32.lt_u (local.get $round) (i32.const 20))))
        (call $reply))
    ;; One word of each of 16384 pages: every store is a page's first.
    (func (export "canister_update pages")
        (local $at WIDTH)
        (loop $next
            (i64.store (local.get $at) (i64.const 1))
            (local.set $at (WIDTH.add (local.get $at) (WIDTH.const 4096)))
            (br_if $next (WIDTH.lt_u (local.get $at) (WIDTH.const 67108864))))
        (call $reply))
    (func (export "canister_update one")
        (i64.store (WIDTH.const 4096) (i64.add (i64.load (WIDTH.const 4096)) (i64.const 1)))
        (call $reply))
    (func (export "canister_global_timer")
        (i64.store (WIDTH.const 4096) (i64.add (i64.load (WIDTH.const 4096)) (i64.const 1))))
    (func (export "canister_update bare")
        (i64.store (WIDTH.const 4096) (i64.add (i64.load (WIDTH.const 4096)) (i64.const 1))))
    (func (export "canister_query read")
        (drop (i64.load (WIDTH.const 4096)))
        (call $reply)))
