import { FrameDecoder, OP } from '@sluice/protocol'
import { expect, test } from 'vitest'
import { Outboxes } from './outboxes.js'

function outboxesOf(): { outboxes: Outboxes; sent: number[] } {
  const sent: number[] = []
  const decoder = new FrameDecoder((opcode) => void sent.push(opcode), false)
  const transport = { write: (bytes: Uint8Array) => decoder.push(bytes) }
  return { outboxes: new Outboxes(transport, () => {}), sent }
}

const BODY = new Uint8Array(8)

test.each([OP.PUBLISH_OK, OP.PUBLISH_ERR, OP.SETTLE_OK])(
  'a delivery of durable messages overtakes a waiting answer with opcode %i',
  (opcode) => {
    const { outboxes, sent } = outboxesOf()
    outboxes.gated.frame(opcode, 0, 0, BODY)
    outboxes.forDelivery(true).frame(OP.DELIVER, 1, 0, BODY)
    outboxes.endTurn(7)
    expect(outboxes.sendDurable(6)).toBe(true)
    expect(sent).toEqual([OP.DELIVER])
    expect(outboxes.sendDurable(7)).toBe(false)
    expect(sent).toEqual([OP.DELIVER, opcode])
    outboxes.invariants()
  },
)

test.each([OP.SUBSCRIBE_OK, OP.DELIVER, OP.RESULT, OP.LEASES_LOST, OP.ERROR])(
  'a delivery of durable messages waits behind a frame with opcode %i',
  (opcode) => {
    const { outboxes, sent } = outboxesOf()
    outboxes.gated.frame(opcode, 1, 0, BODY)
    outboxes.endTurn(7)
    outboxes.forDelivery(true).frame(OP.DELIVER, 1, 0, BODY)
    outboxes.endTurn(8)
    outboxes.sendDurable(6)
    expect(sent).toEqual([])
    outboxes.sendDurable(7)
    expect(sent).toEqual([opcode])
    outboxes.sendDurable(8)
    expect(sent).toEqual([opcode, OP.DELIVER])
    outboxes.invariants()
  },
)

test('a delivery of messages that are not durable waits for the entry of its turn', () => {
  const { outboxes, sent } = outboxesOf()
  outboxes.forDelivery(false).frame(OP.DELIVER, 1, 0, BODY)
  outboxes.endTurn(7)
  expect(outboxes.sendDurable(6)).toBe(true)
  expect(sent).toEqual([])
  expect(outboxes.sendDurable(7)).toBe(false)
  expect(sent).toEqual([OP.DELIVER])
})

test('a free frame of a turn in which an entry becomes durable waits for the end of the turn, and is not forgotten', () => {
  const { outboxes, sent } = outboxesOf()
  outboxes.free.frame(OP.ANSWER, 0, 0, BODY)
  expect(outboxes.sendDurable(6)).toBe(true)
  expect(sent).toEqual([])
  outboxes.endTurn(7)
  expect(outboxes.sendDurable(6)).toBe(false)
  expect(sent).toEqual([OP.ANSWER])
})
