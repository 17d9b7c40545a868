/** Requests whose replies do not come. Replies are tested over real connections in test/integration. */
import { afterEach, describe, expect, it, vi } from 'vitest'
import type { Sluice } from './client.js'
import { Peer, turns } from './testing/peer.js'

let sluice: Sluice

afterEach(async () => {
  vi.restoreAllMocks()
  await sluice.close({ timeout: 1 }).catch(() => {})
})

describe('a request', () => {
  it('does not fail before its own deadline, which is later than that of its publish', async () => {
    sluice = await new Peer().connect()
    const clock = vi.spyOn(performance, 'now')
    const startMs = performance.now()
    clock.mockReturnValue(startMs)
    // The publish that begins the turn sets the time from which deadlines of publishes in this turn count.
    const published = sluice.publish('q', 1, { timeout: 1_000 }).catch((error: unknown) => error)
    clock.mockReturnValue(startMs + 500)
    let failedMs = 0
    const request = sluice.request('q', 2, { timeout: 600 }).catch((error: unknown) => {
      failedMs = performance.now()
      return error
    })
    clock.mockReturnValue(startMs + 1_001)
    expect(await published).toMatchObject({ code: 'TIMEOUT' })
    await turns()
    expect(failedMs).toBe(0)
    clock.mockReturnValue(startMs + 1_101)
    expect(await request).toMatchObject({ code: 'REQUEST_TIMEOUT', queue: 'q' })
  })
})
