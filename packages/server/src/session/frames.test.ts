import { OPCODES, type Frame, type OpcodeName } from '@sluice/protocol'
import { expect, test } from 'vitest'
import { handlerOf } from './frames.js'

function frameOf(opcode: number, payloadBytes = 0, flags = 0): Frame {
  const bytes = new Uint8Array(payloadBytes)
  return { opcode, flags, channel: 0, correlation: 0, bytes, start: 0, end: payloadBytes }
}

const KINDS = Object.entries(OPCODES) as [OpcodeName, (typeof OPCODES)[OpcodeName]][]

test('a client can send each kind of its frames at one stage, and can never send a frame of the broker', () => {
  let accepted = 0
  let refused = 0
  for (const [name, { code, sender, stage }] of KINDS) {
    for (const current of ['handshake', 'open', 'closed']) {
      if (sender !== 'server' && stage === current) {
        expect(handlerOf(frameOf(code), current, current)).toBeTypeOf('function')
        accepted++
      } else {
        const error = expect.objectContaining({
          code: 'UNEXPECTED_FRAME',
          message: expect.stringContaining(name),
        })
        expect(() => handlerOf(frameOf(code), current, current)).toThrow(error)
        refused++
      }
    }
  }
  expect(accepted).toBe(KINDS.filter(([, { sender }]) => sender !== 'server').length)
  expect(accepted + refused).toBe(3 * KINDS.length)
})

test('a frame is refused if it has flags, an unknown number, or a payload that its layout does not allow', () => {
  let empty = 0
  for (const [, { code, layout, sender }] of KINDS) {
    if (sender === 'server') continue
    expect(() => handlerOf(frameOf(code, 0, 1), 'open', 'open')).toThrow('this version has none')
    if (layout !== 'empty') continue
    expect(() => handlerOf(frameOf(code, 1), 'open', 'open')).toThrow('has 1 bytes; it must have none')
    empty++
  }
  expect(empty).toBe(2)
  const known = new Set<number>(KINDS.map(([, { code }]) => code))
  for (let opcode = 0; opcode < 256; opcode++) {
    if (known.has(opcode)) continue
    expect(() => handlerOf(frameOf(opcode), 'open', 'open')).toThrow(
      `No frame kind has the number ${opcode}.`,
    )
  }
})
