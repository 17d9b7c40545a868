/** Replies between two sessions of one broker. */
import {
  FrameDecoder,
  OP,
  REPLY_FATE,
  REPLY_KIND,
  decodeAnswer,
  decodeFault,
  decodeReplied,
  encodeGoodbye,
  encodeMailbox,
  encodeReply,
  failureRecord,
  GOODBYE_REASON,
} from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import { Bench } from '../testing/bench.js'
import { frame, greeting } from '../testing/client.js'
import { readingTransport } from '../testing/transport.js'
import { Session } from './session.js'
import { SESSION_DEFAULTS } from './settings.js'

const MAILBOX = '0123456789abcdef'.repeat(2)

class Peer {
  readonly answers: number[] = []
  readonly fates: number[] = []
  readonly errors: string[] = []
  readonly #bench: Bench
  readonly #session: Session

  constructor(bench: Bench) {
    this.#bench = bench
    const decoder = new FrameDecoder((opcode, _flags, _channel, _correlation, bytes, start, end) => {
      if (opcode === OP.ANSWER) this.answers.push(decodeAnswer(bytes, start, end).request)
      else if (opcode === OP.REPLIED) this.fates.push(decodeReplied(bytes, start, end))
      else if (opcode === OP.ERROR) this.errors.push(decodeFault(bytes, start, end).code)
    })
    decoder.frameBytesMax = SESSION_DEFAULTS.frameBytesMax
    const transport = readingTransport(decoder)
    this.#session = new Session(bench.broker, transport, SESSION_DEFAULTS, bench.now, () => {})
    this.#session.receive(greeting(), bench.now)
  }

  send(opcode: number, payload: Uint8Array): void {
    this.#session.receive(frame(opcode, payload), this.#bench.now)
  }

  reply(request: number, reason = 'no'): void {
    const record = failureRecord(reason)
    this.send(OP.REPLY, encodeReply({ mailbox: MAILBOX, request }, REPLY_KIND.failure, record))
  }

  lose(): void {
    this.#session.disconnected()
  }
}

async function opened(): Promise<{ bench: Bench; asker: Peer; responder: Peer }> {
  const bench = await new Bench().open()
  await bench.pass(60_000)
  const [asker, responder] = [new Peer(bench), new Peer(bench)]
  asker.send(OP.MAILBOX, encodeMailbox(MAILBOX))
  await bench.settle()
  return { bench, asker, responder }
}

describe('a reply', () => {
  it('is passed on to the session of the mailbox, and waits for nothing', async () => {
    const { bench, asker, responder } = await opened()
    const entries = bench.log.entries.length
    responder.reply(7)
    responder.reply(8)
    await bench.settle()
    expect(asker.answers).toEqual([7, 8])
    expect(responder.fates).toEqual([REPLY_FATE.delivered, REPLY_FATE.delivered])
    expect(bench.log.entries.length).toBe(entries)
  })

  it('is sent although an entry becomes durable between the reply and the end of the turn', async () => {
    const { bench, asker, responder } = await opened()
    bench.ensure()
    bench.endTurns()
    responder.reply(7)
    await bench.settle()
    expect(asker.answers).toEqual([7])
    expect(responder.fates).toEqual([REPLY_FATE.delivered])
  })

  it('is kept for a lost connection, and sent to the next one', async () => {
    const { bench, asker, responder } = await opened()
    asker.lose()
    responder.reply(7)
    await bench.settle()
    const again = new Peer(bench)
    again.send(OP.MAILBOX, encodeMailbox(MAILBOX))
    await bench.settle()
    expect([asker.answers, again.answers]).toEqual([[], [7]])
    expect(responder.fates).toEqual([REPLY_FATE.kept])
  })

  it('to a client that has said goodbye is refused', async () => {
    const { bench, asker, responder } = await opened()
    asker.send(OP.GOODBYE, encodeGoodbye(GOODBYE_REASON.left, ''))
    await bench.settle()
    responder.reply(7)
    await bench.settle()
    expect(responder.fates).toEqual([REPLY_FATE.gone])
  })

  it('to the mailbox that a client has replaced is refused', async () => {
    const { bench, asker, responder } = await opened()
    asker.send(OP.MAILBOX, encodeMailbox('f'.repeat(32)))
    responder.reply(7)
    await bench.settle()
    expect(responder.fates).toEqual([REPLY_FATE.gone])
    expect(bench.broker.mailboxes.dropped).toBe(1)
  })

  it('above the maximum is refused, and the connection stays open', async () => {
    const { bench, responder, asker } = await opened()
    responder.reply(7, 'x'.repeat(1_025))
    responder.reply(8)
    await bench.settle()
    expect(responder.errors).toEqual(['MESSAGE_TOO_LARGE'])
    expect(asker.answers).toEqual([8])
  })

  it('that is malformed ends the connection of its sender only', async () => {
    const { bench, responder, asker } = await opened()
    responder.send(OP.REPLY, new Uint8Array(20))
    await bench.settle()
    expect(responder.errors).toEqual(['MALFORMED_FRAME'])
    const other = new Peer(bench)
    other.reply(9)
    await bench.settle()
    expect(asker.answers).toEqual([9])
  })
})
