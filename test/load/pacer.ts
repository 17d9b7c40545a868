/** The pacer of `sluice bench`, so that the harness and `sluice bench` pace a fixed rate in the same way. */
import type * as pacer from '../../packages/server/src/cli/pacer.js'

export const { nowMs, pace } = (await import(
  new URL('./cli/pacer.js', import.meta.resolve('@sluice/server')).href
)) as typeof pacer
