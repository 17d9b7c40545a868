import { EXPLAIN_CODES, type ExplainCode, type ExplainReason } from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import { explanationOf } from './explanation.js'

const NOW_MS = Date.parse('2026-12-01T10:00:00Z')

/** Every value that a reason can have. */
const VALUES: Omit<ExplainReason, 'code'> = {
  ...{ offset: 7, next: 8, sinceMs: NOW_MS - 90_000, untilMs: NOW_MS + 1_500, attempts: 2, count: 3 },
  ...{ death: 'rejected', text: 'no such customer', consumer: 12, client: 'billing' },
  ...{ leased: 4, credit: 4, leasedBytes: 100, creditBytes: 1_000 },
}

const textOf = (reason: ExplainReason): string =>
  explanationOf('orders', { reasons: [reason] }, NOW_MS).reasons[0]!.text

describe('reasons', () => {
  it.each(['orders', 'clicks@billing'])('are sentences, with what to do, about %s', (name) => {
    let hints = 0
    for (const code of Object.keys(EXPLAIN_CODES) as ExplainCode[]) {
      const [reason] = explanationOf(name, { reasons: [{ code, ...VALUES }] }, NOW_MS).reasons
      for (const sentence of [reason!.text, ...(reason!.hint === undefined ? [] : [reason!.hint])]) {
        expect(sentence, code).toMatch(/^[A-Z\d].*\.$/)
        expect(sentence, code).not.toMatch(/undefined|NaN|\[object| {2}/)
      }
      if (reason!.hint !== undefined) hints++
    }
    expect(hints).toBeGreaterThanOrEqual(14)
  })

  it('of held keys name no message if the search found none', () => {
    const [reason] = explanationOf('orders', { reasons: [{ code: 'keys' }] }, NOW_MS).reasons
    expect(reason!.text).toBe('Every ready message waits for its key.')
    expect(reason!.hint).toBe('Ask about one with `sluice explain orders OFFSET`.')
  })

  it('of a group name its commands', () => {
    const of = (code: ExplainCode): string => {
      const [reason] = explanationOf('clicks@billing', { reasons: [{ code, ...VALUES }] }, NOW_MS).reasons
      return `${reason!.text} ${reason!.hint}`
    }
    expect(of('paused')).toBe('The group is paused. Resume it with `sluice queue resume clicks@billing`.')
    expect(of('noConsumer')).toContain('`sluice group get clicks@billing`')
    expect(of('queueRate')).toContain('`sluice group ensure clicks@billing --update --rate`')
    expect(of('gone')).toContain('the group acknowledged, cancelled or missed it')
  })

  it('are sentences too when a value is missing', () => {
    for (const code of ['keyLeased', 'keyRetry', 'empty'] as const)
      expect(textOf({ code }), code).not.toContain('undefined')
  })

  it('have values in the units of the client', () => {
    const { deliverable, reasons } = explanationOf('orders', {
      reasons: [
        { code: 'keyRate', untilMs: NOW_MS },
        { code: 'keyLine', offset: 3, count: 16_384, countMax: 16_384 },
        { code: 'dead', sinceMs: NOW_MS, attempts: 1, death: 'rejected', text: 'no' },
        { code: 'unpublished', next: 9 },
      ],
    })
    expect(deliverable).toBe(false)
    expect(reasons).toMatchObject([
      { code: 'keyRate', until: new Date(NOW_MS) },
      { code: 'keyLine', offset: 3, count: 16_384, isMore: true },
      { code: 'dead', since: new Date(NOW_MS), attempts: 1, death: 'rejected', error: 'no' },
      { code: 'unpublished', offset: 9 },
    ])
    expect(explanationOf('orders', { reasons: [{ code: 'deliverable' }] }).deliverable).toBe(true)
  })

  it('name times, and how far away they are', () => {
    expect(textOf({ code: 'queueRate', untilMs: NOW_MS + 1_500 })).toBe(
      'The queue has used up its rate until 2026-12-01T10:00:01.500Z, in 1500ms.',
    )
    expect(textOf({ code: 'leased', ...VALUES })).toBe(
      'The message is with the consumer 12 (billing) since 2026-12-01T09:58:30.000Z, 90s ago.',
    )
  })

  it('of an unknown form are refused', () => {
    for (const reasons of [undefined, 5, [null], [5], [{ code: 'other' }], [{}], [{ code: 'toString' }]])
      expect(() => explanationOf('q', { reasons })).toThrow(
        expect.objectContaining({ code: 'MALFORMED_FRAME' }),
      )
  })
})
