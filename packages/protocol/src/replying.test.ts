/** The header of a request, and the frames of replies. */
import { describe, expect, test } from 'vitest'
import { CONTENT_TYPE, recordBytes, writeRecordHead, type RecordOptions } from './record.js'
import {
  REPLY_KIND,
  decodeAnswer,
  decodeMailbox,
  decodeReplied,
  decodeReply,
  encodeMailbox,
  encodeReply,
  failureRecord,
  parseReplyTo,
  replyToValue,
} from './replying.js'

const mailbox = '00ff'.repeat(8)
const MOST = 1_000

function record(options: RecordOptions | undefined, bytes = 3): Uint8Array {
  const all = new Uint8Array(recordBytes(options, bytes))
  writeRecordHead(all, 0, options, CONTENT_TYPE.bytes, bytes)
  return all
}

describe('the header of a request', () => {
  test('is read as it was written', () => {
    for (const request of [0, 1, 4_294_967_295]) {
      const replyTo = { mailbox, request }
      expect(parseReplyTo(replyToValue(replyTo))).toStrictEqual(replyTo)
    }
  })

  test('of any other form makes no request', () => {
    const wrong = [undefined, '', mailbox, `${mailbox}/`, `${mailbox}/01`, `${mailbox}/4294967296`]
    const others = [
      `${mailbox}/-1`,
      `${mailbox}/1 `,
      `${mailbox.toUpperCase()}/1`,
      `${mailbox}0/1`,
      `x${mailbox}/1`,
    ]
    for (const value of [...wrong, ...others]) expect(parseReplyTo(value), value).toBeUndefined()
  })
})

describe('frames of replies', () => {
  test('are read as they were written', () => {
    const bytes = encodeMailbox(mailbox)
    expect(decodeMailbox(bytes, 0, bytes.length)).toBe(mailbox)
    const headers = record({ headers: { a: 'b' } })
    const reply = encodeReply({ mailbox, request: 4_294_967_295 }, REPLY_KIND.answer, headers)
    const { mailbox: read, answerAt } = decodeReply(reply, 0, reply.length, MOST)
    expect(read).toBe(mailbox)
    expect(decodeAnswer(reply, answerAt, reply.length)).toStrictEqual({
      request: 4_294_967_295,
      kind: REPLY_KIND.answer,
      record: headers,
    })
  })

  test('that are cut off anywhere are refused', () => {
    const reply = encodeReply({ mailbox, request: 1 }, REPLY_KIND.failure, failureRecord('gone'))
    for (let end = 0; end < reply.length; end++)
      expect(() => decodeReply(reply, 0, end, MOST), `${end}`).toThrow(/^REPLY /)
    for (const length of [0, 15, 17])
      expect(() => decodeMailbox(new Uint8Array(length), 0, length)).toThrow(/MAILBOX/)
    expect(() => decodeReplied(Uint8Array.of(4), 0, 1)).toThrow('REPLIED has the fate 4.')
    expect(() => decodeReplied(Uint8Array.of(), 0, 0)).toThrow(/REPLIED/)
  })

  test('with a record that is too large, or has other options than headers, are refused', () => {
    const encode = (one: Uint8Array): Uint8Array =>
      encodeReply({ mailbox, request: 1 }, REPLY_KIND.answer, one)
    const read = (one: Uint8Array): unknown => decodeReply(encode(one), 0, encode(one).length, MOST)
    expect(() => read(record(undefined, MOST))).not.toThrow()
    expect(() => read(record(undefined, MOST + 1))).toThrow(
      expect.objectContaining({ code: 'MESSAGE_TOO_LARGE' }),
    )
    for (const options of [{ priority: 1 }, { key: 'k' }, { id: 'i' }, { ttlMs: 5 }, { delayMs: 5 }]) {
      expect(() => read(record(options))).toThrow(expect.objectContaining({ code: 'MALFORMED_FRAME' }))
    }
    const kind = encode(record(undefined))
    kind[20] = 2
    expect(() => decodeReply(kind, 0, kind.length, MOST)).toThrow('REPLY has a reply of the kind 2.')
  })
})
