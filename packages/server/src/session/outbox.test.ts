import { FRAME_HEADER_BYTES, OP, writeFrameLength } from '@sluice/protocol'
import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { Outbox } from './outbox.js'
import { expectSame } from '../../../../test/same.js'

test('a frame is not extended in a later buffer, even if the later buffer reuses the same array', () => {
  const sent: Uint8Array[] = []
  const transport = { write: (bytes: Uint8Array) => void sent.push(Uint8Array.from(bytes)) }
  const outbox = new Outbox(transport, () => {})
  outbox.begin(OP.PUBLISH_OK, 0, 0, 20)
  const { bytes, bufferNumber } = outbox
  // RESULT is copied to a larger buffer together with the first frame, and fills it. SETTLE_OK then starts another
  // buffer, which reuses the array of the first.
  outbox.frame(OP.RESULT, 0, 0, new Uint8Array((1 << 20) - 32 - FRAME_HEADER_BYTES))
  outbox.frame(OP.SETTLE_OK, 0, 0, new Uint8Array(4))
  outbox.frame(OP.SETTLE_OK, 0, 0, new Uint8Array(4))
  expect(outbox.bytes).toBe(bytes)
  expect(outbox.extend(bufferNumber, FRAME_HEADER_BYTES + 20, 20)).toBe(-1)
  outbox.endTurn(1)
  outbox.sendDurable(1)
  expect(sent.map(({ length }) => length)).toEqual([1 << 20, 32])
})

describe('invariants', () => {
  const filled = (): Outbox => {
    const outbox = new Outbox({ write: () => {} }, () => {})
    outbox.frame(OP.PUBLISH_OK, 0, 0, new Uint8Array(20))
    outbox.answers(100)
    outbox.endTurn(1)
    outbox.frame(OP.RESULT, 0, 0, new Uint8Array(300 << 10))
    outbox.frame(OP.RESULT, 0, 0, new Uint8Array(300 << 10))
    outbox.invariants()
    return outbox
  }

  test.each<[string, (outbox: Outbox) => void, string]>([
    ['a byte too many', (outbox) => outbox.outstandingBytes++, 'the counter of outstanding bytes is'],
    [
      'a batch that is not counted',
      (outbox) => (outbox.inFlightBytes = 0),
      'the counter of bytes in flight is 0; a recount gives 100',
    ],
    ['a barrier too few', (outbox) => outbox.barriers--, 'the counter of barriers is 1; a recount gives 2'],
    [
      'an earlier gate',
      (outbox) => outbox.endTurn(0),
      'a buffer waits for 0 behind a buffer that waits for 1',
    ],
    ['a wrong length', (outbox) => writeFrameLength(outbox.bytes, 0, 5), 'the frames of a buffer'],
    [
      'another frame',
      (outbox) => (outbox.bytes[4] = OP.SETTLE_OK),
      'the counter of barriers of a buffer is 1; a recount gives 0',
    ],
  ])('find %s', (_what, spoil, found) => {
    const outbox = filled()
    spoil(outbox)
    expect(() => outbox.invariants()).toThrow(found)
  })

  test('hold after every step, and no byte is sent before its entry is durable', () => {
    const OPCODES = [OP.PUBLISH_OK, OP.SETTLE_OK, OP.RESULT, OP.DELIVER]
    const step = fc.oneof(
      fc.record({
        kind: fc.constant('frame' as const),
        opcode: fc.constantFrom(...OPCODES),
        bytes: fc.oneof(
          { weight: 20, arbitrary: fc.nat(3_000) },
          { weight: 1, arbitrary: fc.nat(300 << 10) },
        ),
      }),
      fc.record({ kind: fc.constant('extend' as const), bytes: fc.integer({ min: 1, max: 2_000 }) }),
      fc.record({ kind: fc.constant('answers' as const), bytes: fc.nat(1_000) }),
      fc.record({ kind: fc.constantFrom('endTurn' as const, 'release' as const, 'read' as const) }),
    )
    let steps = 0
    let sentBuffers = 0
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60, size: 'max' }), fc.boolean(), (given, isClosed) => {
        let lsn = 1
        let durable = 0
        /** Number of bytes written in each turn, by LSN, and number of all bytes sent. */
        const written: number[] = [0, 0]
        let sent = 0
        const reads: (() => void)[] = []
        const transport = {
          write: (bytes: Uint8Array, read: () => void) => {
            sent += bytes.length
            sentBuffers++
            reads.push(read)
          },
        }
        const outbox = new Outbox(transport, () => {})
        let last = { bufferNumber: -1, at: 0, end: 0 }
        for (const one of given) {
          steps++
          if (one.kind === 'frame') {
            const at = outbox.begin(one.opcode, 0, 0, one.bytes)
            outbox.bytes.fill(0, at, at + one.bytes)
            written[lsn]! += FRAME_HEADER_BYTES + one.bytes
            last = { bufferNumber: outbox.bufferNumber, at, end: at + one.bytes }
          } else if (one.kind === 'extend') {
            const at = outbox.extend(last.bufferNumber, last.end, one.bytes)
            if (at !== -1) {
              last.end += one.bytes
              written[lsn]! += one.bytes
              writeFrameLength(outbox.bytes, last.at - FRAME_HEADER_BYTES, last.end - last.at)
            }
          } else if (one.kind === 'answers') {
            // An answer can only belong to a frame of the buffer that is being filled.
            if (last.bufferNumber === outbox.bufferNumber && last.end > 0 && !outbox.isEmpty)
              outbox.answers(one.bytes)
          } else if (one.kind === 'endTurn') {
            outbox.endTurn(lsn)
            last = { bufferNumber: -1, at: 0, end: 0 }
            written[++lsn] = 0
          } else if (one.kind === 'release') {
            durable = lsn - 1
            expect(outbox.sendDurable(durable)).toBe(!outbox.isEmpty)
          } else reads.shift()?.()
          outbox.invariants()
          const due = written.slice(0, durable + 1).reduce((sum, bytes) => sum + bytes, 0)
          expectSame(sent, due)
        }
        if (isClosed) outbox.clear()
        outbox.invariants()
        for (const read of reads.splice(0)) {
          read()
          outbox.invariants()
        }
        expect(outbox.unreadBytes).toBe(0)
      }),
      { numRuns: 200 },
    )
    expect(steps).toBeGreaterThan(2_000)
    expect(sentBuffers).toBeGreaterThan(100)
  })
})
