import { MOVED_BYTES_MAX } from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import { CreditBounds } from './credit.js'

describe('The bounds of a credit', () => {
  it('admit the credit, and no message more', () => {
    const bounds = new CreditBounds({ messages: 10, bytes: 100, limit: 20 })
    expect(bounds.excess(10, 100, 20)).toBeUndefined()
    expect(bounds.excess(11, 100, 20)).toContain('the credit is 10')
    expect(bounds.excess(10, 100, 21)).toContain('more bytes or messages')
  })

  it('admit one message that is larger than the credit', () => {
    const bounds = new CreditBounds({ messages: 10, bytes: 100 })
    expect(bounds.excess(1, 100 + MOVED_BYTES_MAX, 1)).toBeUndefined()
    expect(bounds.excess(1, 101 + MOVED_BYTES_MAX, 1)).toContain('more bytes')
  })

  it('never shrink, because deliveries under an earlier credit may be under way', () => {
    const bounds = new CreditBounds({ messages: 10, bytes: 100 })
    bounds.extend({ messages: 0, bytes: 0, limit: 0, drain: true })
    expect(bounds.excess(10, 100, 1_000)).toBeUndefined()
    bounds.extend({ messages: 12, bytes: 100 })
    expect(bounds.excess(12, 100, 1_000)).toBeUndefined()
  })
})
